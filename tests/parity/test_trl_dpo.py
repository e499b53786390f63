"""Step for step the same training as TRL's DPOTrainer: losses, gradient norms, weights, metrics."""

import pytest
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer
from trl_runs import (
    assert_same_metrics,
    assert_same_training,
    fitted_tokenizer,
    read_hh_rows,
    train_with_prefopt,
    train_with_trl,
)

from tests.models import tiny_model, tiny_rows, tiny_tokenizer

METRICS = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
]

LOSSES = {
    "dpo": {"loss_type": "sigmoid", "beta": 0.3},
    "ipo": {"loss_type": "ipo", "beta": 0.2},
    "hinge": {"loss_type": "hinge", "beta": 0.05},
    "discopop": {"loss_type": "discopop", "beta": 0.1, "discopop_tau": 0.3},
}


def train_both(folder, rows, tokenizer, model=None, **options):
    model = tiny_model("llama", vocab_size=len(tokenizer)) if model is None else model
    theirs = train_with_trl(DPOTrainer, DPOConfig, folder, model, rows, tokenizer, **options)
    return train_with_prefopt(folder, model, rows, tokenizer, **options), theirs


@pytest.mark.parametrize("loss", LOSSES)
def test_trains_as_trl_does(tmp_path, loss):
    ours, theirs = train_both(tmp_path, tiny_rows(24), tiny_tokenizer(), **LOSSES[loss])
    assert_same_training(ours, theirs)
    for mine, other in zip(ours.logged, theirs.logged, strict=True):
        assert_same_metrics(mine, other, METRICS)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_trains_as_trl_does_on_real_rows(tmp_path, shared_dir, loss):
    """The rows are tokenised by each trainer itself; some are cut, one prompt leaves no room."""
    rows = read_hh_rows(shared_dir, 40)
    ours, theirs = train_both(
        tmp_path,
        rows,
        fitted_tokenizer(rows),
        eval_rows=read_hh_rows(shared_dir, 56).select(range(40, 56)),
        max_length=150,
        **LOSSES[loss],
    )
    report = ours.trainer.data_reports["train"]
    assert report.cut_rows > 0
    assert report.kept < report.rows
    assert report.kept == len(theirs.trainer.train_dataset)
    assert_same_training(ours, theirs)
    assert_same_metrics(ours.metrics, theirs.metrics, ["loss", *METRICS], prefix="eval_")


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_accumulates_as_trl_does(tmp_path, loss):
    """TRL averages micro-batches; with as many pairs in each, that is the mean over the step."""
    ours, theirs = train_both(
        tmp_path, tiny_rows(48), tiny_tokenizer(), gradient_accumulation_steps=2, **LOSSES[loss]
    )
    assert_same_training(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"f_divergence_type": "js_divergence", "ld_alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_trains_with_options_as_trl_does(tmp_path, loss, options):
    ours, theirs = train_both(tmp_path, tiny_rows(24), tiny_tokenizer(), **LOSSES[loss], **options)
    assert_same_training(ours, theirs)


@pytest.mark.slow
def test_trains_sums_of_losses_as_trl_does(tmp_path):
    """TRL's sft is a mean over the tokens of the batch, as ours with normalize='token'."""
    rows, tokenizer, model = tiny_rows(24), tiny_tokenizer(), tiny_model("llama")
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3}
    theirs = train_with_trl(DPOTrainer, DPOConfig, tmp_path, model, rows, tokenizer, **options)
    ours = train_with_prefopt(tmp_path, model, rows, tokenizer, **options)
    assert_same_training(ours, theirs)


@pytest.mark.slow
def test_trains_an_adapter_as_trl_does(tmp_path):
    """Both draw the adapter from the seed of the arguments, and take the base as reference."""
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    ours, theirs = train_both(
        tmp_path,
        tiny_rows(24),
        tiny_tokenizer(),
        eval_rows=tiny_rows(8, seed=1),
        peft_config=lora,
        learning_rate=1e-2,
        **LOSSES["dpo"],
    )
    assert_same_training(ours, theirs)
    assert_same_metrics(ours.metrics, theirs.metrics, ["loss", *METRICS], prefix="eval_")
