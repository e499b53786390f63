"""The charts hold the records' numbers, and say what they leave out."""

import json
from dataclasses import replace

import pytest

from prefopt.compare import Comparison, Curve, MethodResult, WinRate
from prefopt.compare.report.charts import all_charts
from prefopt.evaluation import Estimate

HALF = Estimate(0.5, 0.4, 0.6, 100)
NAN = Estimate(float("nan"), float("nan"), float("nan"), 0)


def charts_of(comparison: Comparison):
    return {chart.name: chart for chart in all_charts(comparison)}


def test_there_is_a_chart_for_everything_that_was_measured(comparison):
    assert list(charts_of(comparison)) == [
        "accuracy",
        "balanced_accuracy",
        "frontier",
        "win_rate_chosen",
        "win_rate_start",
        "curve_loss",
        "curve_eval_loss",
        "curve_rewards_accuracies",
        "curve_rewards_margins",
        "curve_logps_chosen",
        "curve_logps_rejected",
        "curve_grad_norm",
        "completion_tokens",
        "margin_length_correlation",
        "displacement",
    ]


def test_what_was_not_measured_has_no_chart():
    assert charts_of(Comparison("", "", "")) == {}


def test_accuracies_are_the_records_in_percent_and_rules_are_lines(comparison):
    chart = charts_of(comparison)["accuracy"]
    accuracies = {it.name: it.metrics.get("accuracy") for it in comparison.methods}
    assert len(chart.spec["datasets"]["rows"]) == 9
    for row in chart.spec["datasets"]["rows"]:
        own = tuple(it * 100 for it in accuracies[row["method"]][:3])
        assert (row["value"], row["low"], row["high"]) == pytest.approx(own)
    lines = [it["data"]["values"][0]["at"] for it in chart.spec["layer"] if "values" in it["data"]]
    assert lines == pytest.approx([it.value * 100 for it in comparison.data_baselines.values()])
    assert "always the longer answer, 61.4% (dashed)" in chart.caption


def test_the_frontier_has_methods_seeds_and_the_best_reachable(comparison):
    data = charts_of(comparison)["frontier"].spec["datasets"]
    rewards = {it.name: it.metrics["reward"].value for it in comparison.methods}
    assert {row["method"]: row["reward"] for row in data["rows"]} == rewards
    assert len(data["seeds"]) == 8 * 3
    assert [row["kl"] for row in data["best"]] == sorted(it.kl for it in comparison.frontier)


def test_a_kl_far_from_the_others_makes_the_scale_a_root(comparison):
    def scale(chart):
        return json.dumps(chart.spec).count('"sqrt"')

    assert scale(charts_of(comparison)["frontier"]) == 0
    far = replace(
        comparison.methods[-1], metrics={"reward": HALF, "kl": Estimate(90.0, 80.0, 99.0, 9)}
    )
    chart = charts_of(replace(comparison, methods=(*comparison.methods[:-1], far)))["frontier"]
    assert scale(chart) > 0
    assert "(square-root scale)" in json.dumps(chart.spec)


def test_points_of_one_temperature_stand_apart_and_keep_their_temperature():
    methods = tuple(MethodResult(it, it) for it in ("a", "b", "c"))
    rates = tuple(WinRate(it.name, "start", t, HALF) for it in methods for t in (0.0, 0.25, 1.0))
    rows = charts_of(Comparison("", "", "", methods=methods, win_rates=rates))["win_rate_start"]
    rows = rows.spec["datasets"]["rows"]
    assert [row["at"] for row in rows if row["method"] == "b"] == [0.0, 0.25, 1.0]
    at = [row["at"] for row in rows if row["temperature"] == 0.25]
    assert at == pytest.approx([0.2, 0.25, 0.3])
    assert {row["rate"] for row in rows} == {50.0}


def test_numbers_that_are_not_finite_are_not_drawn_and_named():
    methods = tuple(
        MethodResult(name, name, metrics={"completion_tokens": value, "kl": NAN, "reward": HALF})
        for name, value in (("fine", HALF), ("diverged", NAN))
    )
    curve = Curve("fine", 0, "loss", (1, 2), (1.0, float("nan")))
    charts = charts_of(Comparison("", "", "", methods=methods, curves=(curve,)))
    assert set(charts) == {"completion_tokens", "curve_loss"}
    assert charts["completion_tokens"].caption.endswith("Not drawn, because not finite: diverged.")
    assert charts["curve_loss"].caption == "Not drawn, because not finite: 1 of the logged values."
    assert "NaN" not in json.dumps([chart.spec for chart in charts.values()])
