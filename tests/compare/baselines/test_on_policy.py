"""RL on the policy's own answers, through TRL."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.compare.baselines import on_policy
from prefopt.compare.baselines.on_policy import train_on_policy
from prefopt.data.tokenize import tokenize_prompts
from prefopt.evaluation import generate
from prefopt.evaluation.prompts import as_example
from prefopt.toy import HELD_OUT_NAMES, build_tokenizer, prompts, true_reward

PROMPT = "review of the film Foxglove :"


@pytest.fixture
def options(fitted_start, toy_files, tmp_path):
    """Options of a short training."""
    return {
        "model": fitted_start,
        "dataset": toy_files["train"],
        "reward": toy_files["reward"],
        "output_dir": str(tmp_path / "model"),
        "max_steps": 25,
        "per_device_train_batch_size": 32,
        "num_generations": 4,
        "max_completion_length": 32,
        "learning_rate": 2e-3,
        "beta": 0.1,
        "logging_steps": 5,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 0,
    }


def mean_reward(folder):
    """True reward of samples to prompts that training did not see."""
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    asked = prompts(HELD_OUT_NAMES)
    settings = {"samples": 8, "max_new_tokens": 32, "batch_size": 256, "seed": 1}
    found = generate(model.eval(), tokenizer, asked, **settings)
    return sum(true_reward(answer.text) for answer in found) / len(found)


@pytest.mark.slow
def test_the_true_reward_rises(options, fitted_start):
    train_on_policy(options)
    before, after = mean_reward(fitted_start), mean_reward(options["output_dir"])
    assert after > before + 0.5
    log = json.loads(Path(options["output_dir"], "trainer_state.json").read_text())["log_history"]
    tokens = [entry["num_tokens"] for entry in log if "num_tokens" in entry]
    lengths = [
        6 + entry["completions/mean_length"] for entry in log if "completions/mean_length" in entry
    ]
    assert tokens[-1] == pytest.approx(32 * 5 * sum(lengths), rel=1e-6)


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint_to_the_same_end(options, tmp_path):
    steps = {**options, "max_steps": 6, "logging_steps": 1}
    whole = {**steps, "save_strategy": "no", "output_dir": str(tmp_path / "whole")}
    parted = {**steps, "save_strategy": "steps", "save_steps": 3}
    train_on_policy(whole)
    train_on_policy(parted)
    shutil.rmtree(Path(parted["output_dir"], "checkpoint-6"))
    train_on_policy(parted, resume=True)
    logs = [
        json.loads(Path(its["output_dir"], "trainer_state.json").read_text())["log_history"]
        for its in (whole, parted)
    ]
    for name in ("reward", "num_tokens"):
        one, other = ([entry[name] for entry in log if name in entry] for log in logs)
        assert len(one) == 6
        assert one == pytest.approx(other, rel=1e-5)


def test_an_answer_is_rewarded_as_it_is_measured():
    """TRL's own text lacks the space before the first word."""
    tokenizer = build_tokenizer()
    asked = [as_example(PROMPT)]
    ids = tokenize_prompts(asked, [0], tokenizer)
    answer = [*tokenizer("i loved the music .")["input_ids"], tokenizer.eos_token_id]
    seen = []

    class Judge:
        name = "judge"

        def scores(self, prompts, completions):
            seen.append((list(prompts), list(completions)))
            return [2.5] * len(completions)

    reward = on_policy._reward(Judge(), asked, ids, tokenizer, [tokenizer.eos_token_id])
    assert reward(number=[0, 0], completion_ids=[answer, answer[:-1]], prompts=["x"]) == [2.5, 2.5]
    assert seen == [([asked[0]] * 2, [" i loved the music ."] * 2)]


def test_without_a_reward_or_with_prompts_that_trl_reads_otherwise_it_is_refused(options):
    with pytest.raises(ValueError, match="RL needs a reward"):
        train_on_policy({**options, "reward": None})
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match="reads text or messages"):
        on_policy._check_readable([as_example([3, 4])], [[3, 4]], tokenizer)
    with pytest.raises(ValueError, match="reads prompt 0 as other tokens"):
        on_policy._check_readable([as_example(PROMPT)], [[3, 4]], tokenizer)


def test_a_step_that_takes_more_prompts_than_there_are_is_refused(options):
    with pytest.raises(ValueError, match="takes 800 prompts and there are 600"):
        train_on_policy({**options, "per_device_train_batch_size": 3200})
