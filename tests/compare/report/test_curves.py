"""Curves of training."""

import json

from prefopt.compare import Comparison, Curve, MethodResult
from prefopt.compare.report.curves import curves

METHODS = (MethodResult("one", "dpo"), MethodResult("two", "ipo"))


def test_a_band_is_drawn_where_a_method_has_seeds_that_differ():
    logged = (
        Curve("one", 0, "loss", (1, 2), (0.7, 0.5)),
        Curve("one", 1, "loss", (1, 2), (0.7, 0.25)),
        Curve("two", 0, "loss", (1,), (0.123456789,)),
    )
    (chart,) = curves(Comparison("", "", "", methods=METHODS, curves=logged))
    assert chart.spec["datasets"]["rows"] == [
        {"m": 0, "s": 1, "v": 0.7, "l": 0.7, "h": 0.7},
        {"m": 0, "s": 2, "v": 0.375, "l": 0.25, "h": 0.5},
        {"m": 1, "s": 1, "v": 0.12346},
    ]
    assert (chart.title, chart.caption) == (
        "loss",
        "Losses of different methods are in different units.",
    )


def test_values_that_are_not_finite_are_counted():
    logged = (
        Curve("one", 0, "loss", (1, 2), (1.0, float("nan"))),
        Curve("one", 0, "grad_norm", (1,), (float("inf"),)),
    )
    (chart,) = curves(Comparison("", "", "", methods=METHODS, curves=logged))
    assert chart.caption.endswith("units. Not drawn, because not finite: 1 of the logged values.")
    assert "NaN" not in json.dumps(chart.spec)


def test_methods_of_very_different_size_are_drawn_on_a_logarithmic_scale():
    def scales(*last: float) -> tuple[bool, bool]:
        logged = tuple(
            Curve(it.name, 0, "grad_norm", (1, 2, 3), (1.0, value, value))
            for it, value in zip(METHODS, last, strict=True)
        )
        (chart,) = curves(Comparison("", "", "", methods=METHODS, curves=logged))
        return '"type": "log"' in json.dumps(chart.spec), "logarithmic" in chart.caption

    assert scales(1.0, 9.0) == (True, True)
    assert scales(1.0, 7.0) == (False, False)
    assert scales(-1.0, 9.0) == (False, False)
