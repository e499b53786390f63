"""Every method has its place, and a name that fits."""

import pytest

from prefopt.compare import Comparison, MethodResult, RunRecord
from prefopt.compare.report.names import (
    LONGEST_NAME,
    short_names,
    with_all_methods,
    with_names,
)


def test_a_method_whose_runs_all_failed_is_listed():
    runs = (RunRecord("a", "ipo", 0, "failed", ""), RunRecord("b", "dpo", 0, "done", ""))
    comparison = Comparison("", "", "", methods=(MethodResult("dpo", "dpo"),), runs=runs)
    assert with_all_methods(comparison).methods == (
        MethodResult("dpo", "dpo"),
        MethodResult("ipo", "ipo"),
    )


def test_two_methods_of_one_name_are_an_error():
    methods = (MethodResult("dpo", "dpo"), MethodResult("dpo", "ipo"))
    with pytest.raises(ValueError, match="there are two called 'dpo'"):
        with_all_methods(Comparison("", "", "", methods=methods))


def test_short_names_stay_and_long_ones_lose_their_middle():
    long = "x" * 40 + "beta=0.1, " * 5 + "lr=1e-5"
    names = short_names(["dpo", "y" * LONGEST_NAME, long])
    assert list(names)[:2] == list(names.values())[:2]
    assert len(names[long]) == LONGEST_NAME
    assert names[long].startswith("xxxx")
    assert names[long].endswith("beta=0.1, lr=1e-5")
    assert "…" in names[long]


def test_names_that_differ_in_the_middle_only_stay_different():
    long = [f"{'x' * 60}{it}{'y' * 60}" for it in range(12)]
    short = set(short_names(long).values())
    assert len(short) == 12
    assert max(map(len, short)) <= LONGEST_NAME


def test_all_parts_of_a_comparison_are_renamed(comparison):
    names = {it.name: f"new {it.name}" for it in comparison.methods}
    new = with_names(comparison, names)
    parts = ("curves", "win_rates", "diagnoses", "runs", "samples")
    found = {it.method for part in parts for it in getattr(new, part)}
    found |= {name for test in new.tests for name in (test.first, test.second)}
    assert found - {"chosen"} == set(names.values()) == {it.name for it in new.methods}
    assert "chosen" in found  # the data's own answers are no method's
