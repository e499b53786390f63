"""A script written for TRL runs after nothing but the two imported names was changed."""

import json

import pytest

from tests.models import tiny_model, tiny_rows, tiny_tokenizer

DPO_SCRIPT = """
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
dataset = load_dataset("json", data_files="pairs.jsonl", split="train").train_test_split(8, seed=0)
training_args = DPOConfig(
    output_dir="aligned",
    beta=0.2,
    loss_type="sigmoid",
    label_smoothing=0.0,
    max_length=64,
    truncation_mode="keep_start",
    learning_rate=1e-2,
    lr_scheduler_type="constant",
    per_device_train_batch_size=4,
    per_device_eval_batch_size=4,
    gradient_accumulation_steps=2,
    max_steps=4,
    eval_strategy="steps",
    eval_steps=2,
    save_strategy="no",
    logging_steps=1,
    report_to="none",
    disable_tqdm=True,
    bf16=False,
    use_cpu=True,
    dataloader_pin_memory=False,
)
trainer = DPOTrainer(
    model=model,
    args=training_args,
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
history = trainer.state.log_history
"""

KTO_SCRIPT = """
from datasets import load_dataset
from trl import KTOConfig, KTOTrainer

training_args = KTOConfig(
    output_dir="aligned",
    beta=0.2,
    desirable_weight=1.0,
    undesirable_weight=1.2,
    learning_rate=1e-2,
    lr_scheduler_type="constant",
    per_device_train_batch_size=12,
    train_sampling_strategy="sequential",
    max_steps=4,
    save_strategy="no",
    logging_steps=1,
    report_to="none",
    disable_tqdm=True,
    bf16=False,
    use_cpu=True,
    dataloader_pin_memory=False,
)
trainer = KTOTrainer(
    model="model",
    args=training_args,
    train_dataset=load_dataset("json", data_files="thumbs.jsonl", split="train"),
)
trainer.train()
trainer.save_model()
history = trainer.state.log_history
"""


def ours(script):
    """Return the script with the two imported names changed, here and where they are used."""
    for theirs, mine in (
        ("from trl import", "from prefopt import"),
        ("DPOConfig", "PreferenceConfig"),
        ("DPOTrainer", "PreferenceTrainer"),
        ("KTOConfig", "PreferenceConfig"),
        ("KTOTrainer", "PreferenceTrainer"),
    ):
        script = script.replace(theirs, mine)
    return script


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A current directory with a model and data files."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, rows in (("pairs", tiny_rows(40)), ("thumbs", tiny_rows(12, "unpaired"))):
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(script):
    names = {"__name__": "__main__"}
    exec(compile(script, "script", "exec"), names)
    return names


@pytest.mark.parametrize("script", [DPO_SCRIPT, KTO_SCRIPT], ids=["dpo", "kto"])
def test_a_script_for_trl_runs_and_does_the_same(workplace, script):
    from transformers import AutoModelForCausalLM

    theirs, mine = run(script), run(ours(script))
    AutoModelForCausalLM.from_pretrained(workplace / "aligned")
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "eval_rewards/accuracies")
    for our_entry, their_entry in zip(mine["history"], theirs["history"], strict=True):
        for name in names:
            if name in their_entry:
                # Margins are small differences of log-probs of some 30 nats, after steps of AdamW,
                # which makes much of rounding errors at first.
                closest = 1e-4 if name == "rewards/margins" else 1e-5
                assert our_entry[name] == pytest.approx(their_entry[name], rel=1e-4, abs=closest)


def test_the_scripts_differ_in_two_names_only():
    for script in (DPO_SCRIPT, KTO_SCRIPT):
        changed = [
            (old, new)
            for old, new in zip(script.split(), ours(script).split(), strict=True)
            if old != new
        ]
        assert len({old.strip(",(").split("(")[0] for old, _ in changed}) == 3  # trl and two names
