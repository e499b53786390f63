"""What must not change training does not: batches, layouts, references, order of accumulation."""

import pytest
import torch

from prefopt.training.throughput import is_of_machine
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

LOSSES = ["dpo", "kto", "dpo + 0.3*sft", "orpo"]


def run(folder, rows, **options):
    """Train a few steps; return logged losses, gradient norms and final weights.

    By plain gradient descent: Adam's first steps go as far for a gradient of rounding errors as for
    any other.
    """
    trained = trainer(folder, rows, **({"optim": "sgd"} | options))
    trained.train()
    return results(trained)


def results(trained):
    """Return logged losses, gradient norms and final weights."""
    logged = steps(trained)
    weights = torch.cat([p.detach().flatten() for p in trained.model.parameters()])
    return [x["loss"] for x in logged], [x["grad_norm"] for x in logged], weights


def assert_same_training(one, other, tolerance=1e-5):
    """Losses, gradient norms and weights agree, and do not drift to one side."""
    for mine, theirs in zip(one, other, strict=True):
        mine, theirs = torch.as_tensor(mine).double(), torch.as_tensor(theirs).double()
        scale = theirs.abs().max()
        difference = mine - theirs
        assert difference.abs().max() <= tolerance * scale
        assert difference.mean().abs() <= 0.3 * tolerance * scale


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_changes_nothing(tmp_path, loss):
    """1 x 8, 2 x 4 and 8 x 1 are one optimiser step, also where micro-batches differ in tokens."""
    rows = tiny_rows(24)
    whole, halves, singles = (
        run(
            tmp_path,
            rows,
            loss_type=loss,
            per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
        )
        for parts in (1, 2, 8)
    )
    assert_same_training(halves, whole)
    assert_same_training(singles, whole)


def test_accumulation_changes_nothing_on_rankings_of_different_size(tmp_path):
    rows = tiny_rows(24, "ranked")
    whole = run(tmp_path, rows, per_device_train_batch_size=8)
    parts = run(tmp_path, rows, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same_training(parts, whole)


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_limit_of_tokens_changes_nothing(tmp_path, loss, layout):
    """Batches of 8 in one row, and in as many as rows of about two examples take."""
    rows = tiny_rows(24)
    options = {"loss_type": loss, "per_device_train_batch_size": 8, "layout": layout}
    whole = trainer(tmp_path, rows, optim="sgd", **options)
    limited = trainer(tmp_path, rows, optim="sgd", max_tokens_per_batch=50, **options)
    passes = []
    score = limited.scorer.score
    limited.scorer.score = lambda batch, *args, **kwargs: (
        passes.append(batch) or score(batch, *args, **kwargs)
    )
    for trained in (whole, limited):
        trained.train()
    assert len(passes) >= 2 * limited.state.global_step
    assert_same_training(results(limited), results(whole))


@pytest.mark.parametrize("loss", LOSSES)
def test_layouts_train_alike(tmp_path, loss):
    rows = tiny_rows(12)
    shared = run(tmp_path, rows, loss_type=loss, layout="shared_prefix")
    padded = run(tmp_path, rows, loss_type=loss, layout="padded")
    assert_same_training(shared, padded, tolerance=1e-4)


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_cached_and_live_references_train_alike(tmp_path, kind):
    rows = tiny_rows(12, kind)
    loss = "dpo" if kind == "paired" else "kto"
    cached = run(tmp_path, rows, loss_type=loss, reference="cached")
    live = run(tmp_path, rows, loss_type=loss, ref_model=tiny_model("llama"), reference="live")
    assert_same_training(cached, live)


def test_a_limit_of_tokens_changes_no_evaluation(tmp_path):
    rows = tiny_rows(7, "unpaired")
    evaluated = [
        trainer(
            tmp_path, None, eval_dataset=rows, loss_type="kto", max_tokens_per_batch=limit
        ).evaluate()
        for limit in (None, 40)
    ]
    for name, value in evaluated[0].items():
        if not is_of_machine(name):
            assert evaluated[1][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_gradient_checkpointing_trains_alike(tmp_path):
    rows = tiny_rows(12)
    plain = run(tmp_path, rows)
    checkpointed = run(tmp_path, rows, gradient_checkpointing=True)
    assert_same_training(checkpointed, plain)


def test_offloaded_activations_train_alike(tmp_path):
    rows = tiny_rows(12)
    assert_same_training(run(tmp_path, rows, activation_offloading=True), run(tmp_path, rows))


@pytest.mark.parametrize(
    ("loss", "kind"), [("dpo", "paired"), ("kto", "unpaired"), ("orpo", "ranked")]
)
def test_evaluation_does_not_depend_on_its_batch_size(tmp_path, loss, kind):
    rows = tiny_rows(11, kind)
    policy, metrics = tiny_model("llama"), []
    for batch_size in (1, 4, 16):
        evaluator = trainer(
            tmp_path,
            tiny_rows(4, kind, seed=1),
            model=policy,
            ref_model=tiny_model("llama", seed=5) if loss != "orpo" else None,
            eval_dataset=rows,
            loss_type=loss,
            per_device_eval_batch_size=batch_size,
        )
        found = evaluator.evaluate()
        metrics.append({k: v for k, v in found.items() if not (is_of_machine(k) or k == "epoch")})
    assert "eval_rewards/margins" in metrics[0]
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-5)
