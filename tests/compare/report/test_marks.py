"""Which values are the best, and which cannot be told from it."""

from prefopt.compare import PairedTest
from prefopt.compare.report.marks import marks
from prefopt.evaluation import Estimate

VALUES = {
    "best": Estimate(0.80, 0.76, 0.84, 100),
    "near": Estimate(0.77, 0.73, 0.81, 100),
    "far": Estimate(0.60, 0.56, 0.64, 100),
    "unknown": Estimate(float("nan"), float("nan"), float("nan"), 0),
}


def test_without_a_test_intervals_that_overlap_are_not_distinguishable():
    assert marks(VALUES, "higher", ()) == {"best": "best", "near": "tied"}
    assert marks(VALUES, "lower", ()) == {"far": "best"}


def test_a_paired_test_decides_whatever_the_intervals_say_and_in_either_order():
    tests = (
        PairedTest("near", "best", "accuracy", Estimate(-0.03, -0.05, -0.01, 100), 0.001, 0.049),
        PairedTest("best", "far", "accuracy", Estimate(0.2, -0.1, 0.5, 100), 0.01, 0.05),
    )
    assert marks(VALUES, "higher", tests) == {"best": "best", "far": "tied"}


def test_a_test_between_two_others_marks_nothing():
    tests = (PairedTest("near", "far", "accuracy", Estimate(0, -1, 1, 100), 0.9, 0.9),)
    assert marks(VALUES, "higher", tests) == {"best": "best", "near": "tied"}


def test_nothing_is_best_of_one_or_where_no_way_is_better():
    assert marks({"best": VALUES["best"], "unknown": VALUES["unknown"]}, "higher", ()) == {}
    assert marks(VALUES, None, ()) == {}
