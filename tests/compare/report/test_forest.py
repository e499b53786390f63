"""Charts with a row for each method."""

import json

import pytest

from prefopt.compare import Comparison, MethodResult
from prefopt.compare.report.forest import accuracies, displacement, lengths
from prefopt.evaluation import Estimate

HALF = Estimate(0.5, 0.4, 0.6, 100)
NAN = Estimate(float("nan"), float("nan"), float("nan"), 0)


def test_accuracies_are_the_records_in_percent_and_rules_are_lines(comparison):
    chart = next(iter(accuracies(comparison)))
    known = {it.name: it.metrics.get("accuracy") for it in comparison.methods}
    assert len(chart.spec["datasets"]["rows"]) == 9
    for row in chart.spec["datasets"]["rows"]:
        own = tuple(it * 100 for it in known[row["method"]][:3])
        assert (row["value"], row["low"], row["high"]) == pytest.approx(own)
    lines = [it["data"]["values"][0]["at"] for it in chart.spec["layer"] if "values" in it["data"]]
    assert lines == pytest.approx([61.4, 38.6, 56.2])
    assert "always the longer answer, 61.4% (dashed)" in chart.caption


def test_four_rules_have_lines_and_words():
    method = MethodResult("dpo", "dpo", metrics={"accuracy": HALF})
    rules = {f"rule {it}": HALF for it in range(4)} | {"never measured": NAN}
    comparison = Comparison("", "", "", methods=(method,), data_baselines=rules)
    (chart,) = accuracies(comparison)
    assert chart.caption.endswith(
        "rule 0, 50.0% (dashed); rule 1, 50.0% (dotted); rule 2, 50.0% (dash-dotted); "
        "rule 3, 50.0% (dashed)."
    )


def test_numbers_that_are_not_finite_are_not_drawn_and_named():
    methods = tuple(
        MethodResult(name, name, metrics={"completion_tokens": value})
        for name, value in (("fine", HALF), ("diverged", NAN))
    )
    (chart,) = lengths(Comparison("", "", "", methods=methods))
    assert [row["method"] for row in chart.spec["datasets"]["rows"]] == ["fine"]
    assert chart.caption.endswith("Not drawn, because not finite: diverged.")
    assert "NaN" not in json.dumps(chart.spec)


def test_displacement_needs_both_log_ratios(comparison):
    (chart,) = displacement(comparison)
    rows = {row["method"]: row for row in chart.spec["datasets"]["rows"]}
    assert len(rows) == 10
    own = next(it for it in comparison.methods if it.name == "discopop").metrics
    assert rows["discopop"] == {
        "method": "discopop",
        "chosen": own["chosen_log_ratio"].value,
        "rejected": own["rejected_log_ratio"].value,
    }
    assert list(displacement(Comparison("", "", ""))) == []
