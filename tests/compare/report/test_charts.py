"""All charts, each with a name of its own."""

from dataclasses import replace

from prefopt.compare import Comparison, Curve, MethodResult
from prefopt.compare.report.charts import all_charts
from prefopt.compare.report.wins import win_rates


def test_there_is_a_chart_for_everything_that_was_measured(charts):
    assert [chart.name for chart in charts] == [
        "accuracy",
        "balanced_accuracy",
        "frontier",
        "win_rate_chosen",
        "win_rate_start",
        "curve_rewards_accuracies",
        "curve_rewards_margins",
        "curve_eval_loss",
        "curve_loss",
        "curve_logps_chosen",
        "curve_logps_rejected",
        "curve_grad_norm",
        "completion_tokens",
        "margin_length_correlation",
        "displacement",
    ]


def test_what_was_not_measured_has_no_chart():
    assert all_charts(Comparison("", "", "")) == []


def test_names_are_those_of_files_and_no_two_are_one():
    names = ("a/b", "a_b", "A:B", "é" * 200)
    curves = tuple(Curve("dpo", 0, name, (1,), (1.0,)) for name in names)
    methods = (MethodResult("dpo", "dpo"),)
    charts = all_charts(Comparison("", "", "", methods=methods, curves=curves))
    found = {chart.title: chart.name for chart in charts}
    assert set(found) == set(names)
    assert len({name.lower() for name in found.values()}) == 4
    assert all(name.replace("_", "").isalnum() and name.isascii() for name in found.values())
    assert max(map(len, found.values())) == 80


def test_win_rates_of_one_temperature_have_a_row_for_each_method(comparison):
    some = tuple(rate for rate in comparison.win_rates if rate.temperature == 0.7)
    chart = next(iter(win_rates(replace(comparison, win_rates=some))))
    points = chart.spec["layer"][-1]["encoding"]
    assert (points["x"]["field"], points["y"]["field"]) == ("rate", "method")
    assert "Temperature 0.7." in chart.caption
    over = next(iter(win_rates(comparison)))
    assert over.spec["layer"][-1]["encoding"]["y"]["field"] == "rate"
    assert "side by side" in over.caption
