"""What is read of the logs of a run: windows, held-out sets, what is not there."""

import numpy as np
import pytest

from prefopt.training.diagnosis import DIAGNOSTICS
from prefopt.training.history import (
    diagnostics_of_curves,
    diagnostics_of_history,
    summary_of_history,
    training_pairs,
)
from tests.models import tiny_rows
from tests.runs import trainer


def entry(step, pairs, epoch=0.1, **numbers):
    logs = {"loss": 0.5, "step": step, "epoch": epoch, "diagnostics/pairs": pairs}
    return logs | {f"diagnostics/{name}": value for name, value in numbers.items()}


def test_a_window_is_pooled_by_pairs():
    rng = np.random.default_rng(0)
    ratios = [rng.normal(mean, 2.0, size) for mean, size in ((-1.0, 150), (-3.0, 50))]
    history = [entry(1, 400, saturated_pairs=1.0)] + [
        entry(
            step,
            len(part),
            chosen_count=len(part),
            chosen_log_ratio=part.mean(),
            chosen_log_ratio_std=part.std(ddof=1),
            saturated_pairs=0.1 * step,
        )
        for step, part in zip((2, 3), ratios, strict=True)
    ]
    found = summary_of_history(history)
    both = np.concatenate(ratios)
    assert (found.pairs, found.chosen_count) == (200, 200)
    assert found.chosen_log_ratio == pytest.approx(both.mean(), rel=1e-12)
    assert found.chosen_log_ratio_std == pytest.approx(both.std(ddof=1), rel=1e-12)
    assert found.saturated_pairs == pytest.approx((150 * 0.2 + 50 * 0.3) / 200)
    assert found.kept_mass is None


def test_a_window_is_the_last_quarter_and_no_more_than_an_epoch():
    long = [entry(step, 100, epoch=step / 1000) for step in range(40)]
    assert summary_of_history(long).pairs == 1000
    epochs = [
        entry(step, 32, epoch=step / 3, kept_mass=step, chosen_count=32) for step in range(1, 40)
    ]
    assert summary_of_history(epochs).pairs == 96  # three logs of 32
    assert summary_of_history(epochs).kept_mass == pytest.approx(38)  # the last three
    assert training_pairs(epochs) == 96
    # A log of two epochs has each pair twice, which makes it no surer.
    twice = [entry(step, 64, epoch=2.0 * step) for step in range(1, 9)]
    assert summary_of_history(twice).pairs == 32


def test_of_several_held_out_sets_the_worst_is_told():
    def losses(name, last):
        error = {f"eval_{name}_diagnostics/loss_standard_error": 0.01}
        return [{"step": s, f"eval_{name}_loss": v} | error for s, v in ((1, 0.6), (9, last))]

    training = [{"step": 1, "loss": 0.7}, {"step": 9, "loss": 0.2}]
    _, fitted = diagnostics_of_curves([*training, *losses("a", 0.6), *losses("b", 0.9)])
    assert fitted.fires
    assert "held-out (b) loss" in fitted.text


def test_a_history_without_these_metrics_is_not_measured(tmp_path):
    made = trainer(tmp_path, tiny_rows(16))
    made.train()
    found = diagnostics_of_history(made.state.log_history)
    assert [one.name for one in found] == list(DIAGNOSTICS)
    assert {one.value for one in found} == {None}
    assert not any(one.fires for one in found)
    assert diagnostics_of_history([])[0].value is None
