"""The implicit reward of every loss on one scale, and an evaluation before the first step."""

import math

import pytest

from tests.models import tiny_rows
from tests.runs import steps, trainer


@pytest.mark.parametrize("loss", ["simpo", "dpo"])
def test_log_ratios_begin_at_0_and_change_nothing_of_training(tmp_path, loss):
    plain = trainer(tmp_path, tiny_rows(8), loss_type=loss)
    plain.train()
    run = trainer(
        *(tmp_path, tiny_rows(8)),
        eval_dataset=tiny_rows(4, seed=1),
        **{"loss_type": loss, "log_ratios": True, "eval_on_start": True},
    )
    run.train()
    assert [entry["loss"] for entry in steps(run)] == [entry["loss"] for entry in steps(plain)]
    first, *_, last = steps(run)
    for name in ("chosen", "rejected", "margins"):
        assert first[f"log_ratios/{name}"] == pytest.approx(0.0, abs=1e-4)
        assert abs(last[f"log_ratios/{name}"]) > 1e-3
    # Before the first step, an evaluation.
    start = run.state.log_history[0]
    assert start["step"] == 0
    assert start["eval_log_ratios/margins"] == pytest.approx(0.0, abs=1e-4)
    if loss == "dpo":
        assert start["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert last["log_ratios/margins"] == pytest.approx(last["rewards/margins"] / 0.1, rel=1e-3)
    assert "log_ratios/margins" not in steps(plain)[0]
