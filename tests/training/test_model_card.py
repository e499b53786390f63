"""Model cards, and what is uploaded: looked at where it arrives."""

import re
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from transformers import AutoTokenizer

from prefopt.training.model_card import CardDetails, model_card, write_model_card
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import trainer

CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def program(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def test_a_card_says_with_what_the_model_was_trained(tmp_path):
    run = trainer(
        tmp_path / "aligned",
        tiny_rows(6),
        eval_dataset=tiny_rows(4),
        loss_type="dpo + 0.2*sft",
        beta=0.3,
        max_steps=1,
    )
    run.train()
    run.evaluate()
    card = model_card(run)
    assert metadata(card)["library_name"] == "transformers"
    for said in (
        "# aligned",
        "`dpo + 0.2*sft`",
        "beta=0.3",
        "arXiv:2305.18290",
        "@misc{rafailov2023_2305_18290,",
        "@misc{pang2024_2404_19733,",
        "steps: 1",
        "optimiser: adamw_torch",
        "schedule: constant",
        "layout: shared_prefix",
        "## Evaluation after 1 steps",
        "| rewards/accuracies |",
    ):
        assert said in card
    assert "OptimizerNames" not in card
    write_model_card(tmp_path, run)
    assert (tmp_path / "README.md").read_text() == card


@pytest.mark.parametrize("adapter", [False, True])
def test_no_path_of_this_machine_is_told_and_the_base_only_if_others_have_it(tmp_path, adapter):
    (tmp_path / "start").mkdir()
    for name, named in (("hub/model", True), (str(tmp_path / "start"), False)):
        model = tiny_model("llama")
        model.config._name_or_path = name
        lora = LoraConfig(task_type="CAUSAL_LM", r=2) if adapter else None
        run = trainer(tmp_path / "aligned", tiny_rows(4), model=model, peft_config=lora)
        run.card_details = CardDetails(datasets=(str(tmp_path / "mine.jsonl"), "them/pairs"))
        card = model_card(run)
        assert str(tmp_path) not in card
        assert (metadata(card).get("base_model") == name) == named
        assert metadata(card)["library_name"] == ("peft" if adapter else "transformers")
        assert metadata(card)["datasets"] == ["them/pairs"]
        assert "`mine.jsonl`" in card
        assert ("A LoRA adapter of" in card) == adapter
        assert ("`start`: put the path of your copy" in card) == (adapter and not named)


@pytest.mark.parametrize("adapter", [False, True])
def test_what_is_uploaded_is_our_card_and_its_program_answers(
    tmp_path, monkeypatch, capsys, hub, adapter
):
    base = tmp_path / "start"
    tiny_model("llama").save_pretrained(base)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None if adapter else CHAT
    tokenizer.save_pretrained(base)
    run = trainer(
        tmp_path / "work" / "aligned",
        tiny_rows(4),
        model=str(base),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=2) if adapter else None,
        hub_token="hf_secret",
        max_steps=1,
    )
    run.train()
    run.push_to_hub(dataset_name="them/pairs", tags="mine", license="apache-2.0")
    (message, files), *others = hub.commits
    assert (message, others) == ("End of training", [])
    assert hub.tokens == {"Bearer hf_secret"}
    assert {"tokenizer.json", "README.md"} <= set(files)
    assert ("adapter_model.safetensors" if adapter else "model.safetensors") in files
    card = files["README.md"].decode()
    assert card == (tmp_path / "work" / "aligned" / "README.md").read_text()
    said = metadata(card)
    assert {"prefopt", "dpo", "mine"} <= set(said["tags"])
    assert (said["datasets"], said["license"]) == (["them/pairs"], "apache-2.0")
    assert str(tmp_path) not in card
    assert not [name for name, content in files.items() if b"hf_secret" in content]

    # Its program, where another person has what was uploaded (and the base, of an adapter).
    there = tmp_path / "there"
    for name, content in files.items():
        (there / "me" / "aligned" / name).parent.mkdir(parents=True, exist_ok=True)
        (there / "me" / "aligned" / name).write_bytes(content)
    (there / "start").symlink_to(base)
    monkeypatch.chdir(there)
    names: dict = {}
    exec(program(card), names)
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert capsys.readouterr().out.strip()


def test_each_checkpoint_that_is_uploaded_has_our_card(tmp_path, hub):
    run = trainer(
        *(tmp_path / "aligned", tiny_rows(8)),
        push_to_hub=True,
        hub_model_id="team/model",
        hub_token="hf_secret",
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
        hub_always_push=True,
    )
    run.card_details = run.card_details.updated(dataset_name="them/pairs")
    run.train()
    run.push_to_hub()
    assert len(hub.commits) == 3
    for _, files in hub.commits:
        if "README.md" in files:
            assert "them/pairs" in files["README.md"].decode()
    assert "README.md" in hub.commits[0][1]
    assert "steps: 2" in hub.repos["team/model"]["README.md"].decode()


def test_a_card_keeps_what_it_was_told(tmp_path):
    run = trainer(tmp_path / "aligned", tiny_rows(4))
    run.create_model_card("Mine", dataset_name=["a/b", "c/d"], tags=["x"])
    run.create_model_card(tags="y", dataset=None, tasks="text-generation", finetuned_from="e/f")
    card = Path(run.args.output_dir, "README.md").read_text()
    said = metadata(card)
    assert "# Mine\n" in card
    assert said["datasets"] == ["a/b", "c/d"]
    assert said["tags"][-2:] == ["x", "y"]
    assert (said["base_model"], said["pipeline_tag"]) == ("e/f", "text-generation")
