"""The reward model: trained by TRL on the pairs, and its held-out accuracy."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefopt.compare.baselines.reward_model import measure_reward_model, train_reward_model
from prefopt.toy import true_reward


@pytest.fixture(scope="module")
def trained(fitted_start, toy_files, tmp_path_factory) -> str:
    """Folder of a reward model."""
    folder = tmp_path_factory.mktemp("reward_model")
    train_reward_model(
        {
            "model": fitted_start,
            "dataset": toy_files["train"],
            "eval_datasets": [toy_files["held_out"]],
            "output_dir": str(folder),
            "max_steps": 150,
            "per_device_train_batch_size": 32,
            "learning_rate": 5e-3,
            "logging_steps": 10,
            "save_strategy": "no",
            "eval_strategy": "steps",
            "eval_steps": 75,
            "use_cpu": True,
            "report_to": "none",
            "seed": 0,
        }
    )
    return str(folder)


def rewards_of(folder, texts):
    """Rewards, each text alone, as the model gives them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            found.append(model(ids).logits.item())
    return found


@pytest.mark.slow
def test_accuracy_is_that_of_its_own_outputs(trained, toy_files, tmp_path):
    told = {"model": trained, "dataset": toy_files["held_out"], "output_dir": str(tmp_path)}
    measure_reward_model(told)
    metrics = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in Path(toy_files["held_out"]).read_text().splitlines()]
    sides = {
        side: rewards_of(trained, [row["prompt"] + row[side] for row in rows])
        for side in ("chosen", "rejected")
    }
    for side, expected in sides.items():
        assert [pair[f"{side}_reward"] for pair in pairs] == pytest.approx(expected, abs=1e-5)
    right = sum(a > b for a, b in zip(sides["chosen"], sides["rejected"], strict=True))
    assert metrics["accuracy"][0] == pytest.approx(right / len(rows))
    assert [pair["row"] for pair in pairs] == list(range(len(rows)))
    assert pairs[0]["chosen_tokens"] == len(rows[0]["chosen"].split()) + 1
    assert metrics["accuracy"][0] > 0.65


@pytest.mark.slow
def test_it_learns_the_true_reward_and_logs_its_way(trained, toy_files):
    rows = [json.loads(line) for line in Path(toy_files["held_out"]).read_text().splitlines()]
    texts = [row[side] for row in rows for side in ("chosen", "rejected")]
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    learnt = rewards_of(trained, [a + b for a, b in zip(prompts, texts, strict=True)])
    both = torch.tensor([learnt, [true_reward(text) for text in texts]])
    assert torch.corrcoef(both)[0, 1] > 0.6
    log = json.loads(Path(trained, "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_accuracy" in entry] == [75, 150]
    tokens = [entry["num_tokens"] for entry in log if "num_tokens" in entry]
    assert tokens == sorted(tokens)


@pytest.mark.slow
def test_an_adapter_is_merged_so_that_it_judges(fitted_start, toy_files, tmp_path):
    options = {
        "model": fitted_start,
        "dataset": toy_files["train"],
        "output_dir": str(tmp_path / "model"),
        "max_steps": 2,
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "save_strategy": "no",
        "use_cpu": True,
    }
    train_reward_model(options)
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    told = {"model": options["output_dir"], "dataset": toy_files["held_out"]}
    measure_reward_model({**told, "output_dir": str(tmp_path / "evaluation")})
    assert (tmp_path / "evaluation" / "evaluation.json").is_file()


def test_rows_without_pairs_are_refused(fitted_start, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "review of the film Foxglove :", "completion": " i loved the music ."}
    path.write_text("".join(json.dumps({**row, "label": label}) + "\n" for label in (True, False)))
    with pytest.raises(ValueError, match="has none"):
        train_reward_model(
            {"model": fitted_start, "dataset": str(path), "output_dir": str(tmp_path)}
        )
