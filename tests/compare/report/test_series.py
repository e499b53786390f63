"""Means and ranges over seeds, thinned without bias."""

import pytest

from prefopt.compare import Curve
from prefopt.compare.report.series import Band, bands, curve_metrics, unfinite

NAN = float("nan")


def test_a_point_is_the_mean_and_range_over_the_seeds_that_have_it():
    curves = [
        Curve("dpo", 0, "loss", (1, 2, 3), (1.0, 2.0, 3.0)),
        Curve("dpo", 1, "loss", (1, 2), (3.0, 2.0)),
        Curve("ipo", 0, "loss", (5,), (7.0,)),
    ]
    assert bands(curves, 2) == {
        "dpo": [Band(1, 2.0, 1.0, 3.0), Band(2, 2.0, 2.0, 2.0), Band(3, 3.0, 3.0, 3.0)],
        "ipo": [Band(5, 7.0, 7.0, 7.0)],
    }


def test_long_curves_are_averaged_over_neighbouring_steps_up_to_the_last():
    steps = tuple(range(1, 1001))
    (points,) = bands([Curve("dpo", 0, "loss", steps, tuple(map(float, steps)))], 1).values()
    assert len(points) == 200
    assert points[0] == Band(5, 3.0, 3.0, 3.0)
    assert points[-1].step == 1000
    assert sum(point.mean for point in points) / 200 == pytest.approx(500.5)


def test_many_curves_share_the_points_of_a_page():
    steps = tuple(range(1000))
    curve = Curve("dpo", 0, "loss", steps, tuple(map(float, steps)))
    (points,) = bands([curve], 16_000 // 50).values()
    assert len(points) == 50
    (points,) = bands([curve], 10**9).values()
    assert len(points) == 12


def test_values_that_are_not_finite_are_left_out_and_counted():
    curves = [Curve("dpo", 0, "loss", (1, 2, 3), (1.0, NAN, float("inf")))]
    assert bands(curves, 1) == {"dpo": [Band(1, 1.0, 1.0, 1.0)]}
    assert unfinite(curves) == 2
    assert bands([Curve("dpo", 0, "loss", (1,), (NAN,))], 1) == {"dpo": []}


def test_accuracies_margins_and_losses_come_before_what_is_logged_besides():
    names = ["zeal", "grad_norm", "eval_loss", "rewards/margins", "loss"]
    curves = [Curve("dpo", 0, name, (1,), (1.0,)) for name in names]
    assert curve_metrics(curves) == ["rewards/margins", "eval_loss", "loss", "grad_norm", "zeal"]
