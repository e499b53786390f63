"""Step for step the same training as TRL's KTOTrainer, given the same mismatched completions.

TRL rotates the completions inside each batch of the training order; ours come from the whole data
set. So ours is given TRL's rotation in the column it keeps, but for one test where the batch is the
data set, and both rotations are one.
"""

import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import KTOConfig, KTOTrainer
from trl_runs import (
    COMMON,
    assert_same_metrics,
    assert_same_training,
    fitted_tokenizer,
    read_hh_rows,
    train_with_prefopt,
    train_with_trl,
)

from tests.models import tiny_model, tiny_rows, tiny_tokenizer

METRICS = [
    "kl",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
]
OPTIONS = {"beta": 0.2, "desirable_weight": 1.1, "undesirable_weight": 0.7}


def rotated(rows, tokenizer, max_length=1024, size=COMMON["per_device_train_batch_size"]):
    """Return rows of token ids, each with the completion before it in its batch.

    Rows whose prompt leaves no room are dropped before, as TRL does: batches are made of the rest.
    """
    rows = rows.filter(lambda row: len(tokenizer(row["prompt"])["input_ids"]) < max_length)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    completions = [tokenizer(row["completion"] + tokenizer.eos_token)["input_ids"] for row in rows]
    others = []
    for start in range(0, len(rows), size):
        batch = completions[start : start + size]
        others += [batch[-1], *batch[:-1]]
    rows = rows.select_columns(["label"])
    rows = rows.add_column("prompt_ids", prompts).add_column("completion_ids", completions)
    return rows.add_column("kl_completion_ids", others)


def as_thumbs(pairs):
    """Return both completions of each pair, one after the other, with a thumb each."""
    thumbs = []
    for row in pairs:
        for side in ("chosen", "rejected"):
            thumb = {"completion": row[side], "label": side == "chosen"}
            thumbs.append({"prompt": row["prompt"]} | thumb)
    return Dataset.from_list(thumbs)


def train_both(folder, theirs_rows, ours_rows, tokenizer, **options):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    theirs = train_with_trl(KTOTrainer, KTOConfig, folder, model, theirs_rows, tokenizer, **options)
    if options.get("eval_rows") is not None:
        options["eval_rows"] = rotated(options["eval_rows"], tokenizer)
    return train_with_prefopt(folder, model, ours_rows, tokenizer, **options), theirs


def test_trains_as_trl_does(tmp_path):
    rows, tokenizer = tiny_rows(24, "unpaired"), tiny_tokenizer()
    ours, theirs = train_both(tmp_path, rows, rotated(rows, tokenizer), tokenizer, **OPTIONS)
    assert_same_training(ours, theirs)
    assert any(entry["kl"] > 0 for entry in theirs.logged)
    for mine, other in zip(ours.logged, theirs.logged, strict=True):
        # A batch may lack a side.
        assert_same_metrics(mine, other, [name for name in METRICS if name in other])


def test_trains_as_trl_does_where_the_batch_is_the_data_set(tmp_path):
    """Without any help: both rotations give each row the completion before it."""
    rows, tokenizer = tiny_rows(12, "unpaired"), tiny_tokenizer()
    options = OPTIONS | {"per_device_train_batch_size": len(rows)}
    ours, theirs = train_both(tmp_path, rows, rows, tokenizer, **options)
    assert_same_training(ours, theirs)
    assert any(entry["kl"] > 0 for entry in theirs.logged)


@pytest.mark.slow
def test_trains_as_trl_does_on_real_rows(tmp_path, shared_dir):
    """The thumbs of real pairs, one pair after the other; some completions are cut."""
    rows = as_thumbs(read_hh_rows(shared_dir, 20))
    tokenizer = fitted_tokenizer(rows)
    ours, theirs = train_both(
        tmp_path, rows, rotated(rows, tokenizer, 150), tokenizer, max_length=150, **OPTIONS
    )
    assert len(ours.trainer.train_dataset) < len(rows)
    assert ours.trainer.data_reports["train"].cut_rows > 0
    assert_same_training(ours, theirs)


@pytest.mark.slow
def test_evaluates_as_trl_does(tmp_path):
    """TRL's estimate of the KL is that of each batch, ours that of the whole set: one batch."""
    rows, held_out, tokenizer = (
        tiny_rows(24, "unpaired"),
        tiny_rows(4, "unpaired", 1),
        tiny_tokenizer(),
    )
    ours, theirs = train_both(
        tmp_path, rows, rotated(rows, tokenizer), tokenizer, eval_rows=held_out, **OPTIONS
    )
    assert_same_training(ours, theirs)
    assert_same_metrics(ours.metrics, theirs.metrics, ["loss", *METRICS], prefix="eval_")


@pytest.mark.slow
def test_trains_an_adapter_as_trl_does(tmp_path):
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    rows, tokenizer = tiny_rows(24, "unpaired"), tiny_tokenizer()
    ours, theirs = train_both(
        tmp_path,
        rows,
        rotated(rows, tokenizer),
        tokenizer,
        peft_config=lora,
        learning_rate=1e-2,
        **OPTIONS,
    )
    assert_same_training(ours, theirs)
