"""Win rate over temperature."""

import pytest

from prefopt.compare import Comparison, MethodResult, WinRate
from prefopt.compare.report.wins import win_rates
from prefopt.evaluation import Estimate

HALF = Estimate(0.5, 0.4, 0.6, 100)
NAN = Estimate(float("nan"), float("nan"), float("nan"), 0)


def test_points_of_one_temperature_stand_apart_and_keep_their_temperature():
    methods = tuple(MethodResult(it, it) for it in ("a", "b", "c"))
    rates = tuple(WinRate(it.name, "start", t, HALF) for it in methods for t in (0.0, 0.25, 1.0))
    (chart,) = win_rates(Comparison("", "", "", methods=methods, win_rates=rates))
    rows = chart.spec["datasets"]["rows"]
    assert [row["at"] for row in rows if row["method"] == "b"] == [0.0, 0.25, 1.0]
    at = [row["at"] for row in rows if row["temperature"] == 0.25]
    assert at == pytest.approx([0.2, 0.25, 0.3])
    assert {row["rate"] for row in rows} == {50.0}


def test_one_temperature_is_enough_and_nothing_finite_is_no_chart():
    method = MethodResult("a", "a")
    rates = (WinRate("a", "start", 0.7, HALF), WinRate("a", "chosen", 0.7, NAN))
    (chart,) = win_rates(Comparison("", "", "", methods=(method,), win_rates=rates))
    assert chart.title == "Win rate against the start"
    assert [row["at"] for row in chart.spec["datasets"]["rows"]] == [0.7]
