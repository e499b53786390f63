"""How measured numbers are named and written."""

import pytest

from prefopt.compare.report.metrics import METRICS, decimals, find_metric, number
from prefopt.evaluation import Estimate


def test_the_metrics_that_evaluation_writes_are_known_and_explained():
    names = """
        accuracy log_ratio_accuracy balanced_accuracy margin chosen_log_ratio rejected_log_ratio
        margin_length_correlation start_agreement kl reward best_of_n_reward completion_tokens
        distinct_1 distinct_2 truncated
    """
    assert {metric.name for metric in METRICS} == set(names.split())
    assert all(metric.meaning.endswith(".") for metric in METRICS)
    assert len({metric.title for metric in METRICS}) == len(METRICS)


def test_a_metric_that_is_not_known_goes_by_its_own_name():
    metric = find_metric("politeness")
    assert (metric.title, metric.better, metric.scale) == ("politeness", None, 1.0)


@pytest.mark.parametrize(
    ("metric", "half", "places"),
    [
        ("reward", 0.078, 2),
        ("reward", 0.021, 3),
        ("reward", 2.1, 1),
        ("reward", 7.5, 0),
        ("reward", 210.0, 0),
        ("reward", 1e-9, 4),
        ("accuracy", 0.038, 1),
        ("accuracy", 0.08, 1),
        ("accuracy", 0.0021, 2),
    ],
)
def test_decimals_show_the_digits_that_an_interval_leaves_meaningful(metric, half, places):
    assert decimals([Estimate(1, 1 - half, 1 + half, 9)], find_metric(metric)) == places


def test_a_column_without_intervals_has_two_decimals():
    assert decimals([Estimate(1, 1, 1, 9)], find_metric("kl")) == 2
    nan = float("nan")
    assert decimals([Estimate(nan, nan, nan, 9)], find_metric("kl")) == 2


def test_numbers_have_a_minus_sign_and_no_negative_zero():
    assert [number(it, 1) for it in (-1234.56, -0.01, float("-inf"), float("inf"))] == [
        "−1,234.6",
        "0.0",
        "−∞",
        "∞",
    ]
