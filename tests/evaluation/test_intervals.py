"""Intervals against published values and closed forms; ties and wrong input."""

import math

import pytest
import torch

from prefopt.evaluation import (
    bootstrap_interval,
    mean_interval,
    preference_accuracy,
    wilson_interval,
    win_rate,
)


def test_wilson_matches_published_values():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3.
    for successes, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        estimate = wilson_interval(successes, count)
        assert estimate.value == pytest.approx(successes / count)
        assert estimate.low == pytest.approx(low, abs=5e-5)
        assert estimate.high == pytest.approx(high, abs=5e-5)
        assert estimate.size == count


def test_wilson_mirrors_and_narrows():
    few, mirrored, many = wilson_interval(3, 10), wilson_interval(7, 10), wilson_interval(300, 1000)
    assert few.low == pytest.approx(1 - mirrored.high)
    assert many.high - many.low < few.high - few.low
    wide = wilson_interval(3, 10, confidence=0.99)
    assert wide.low < few.low
    assert wide.high > few.high


def test_mean_interval_is_mean_and_standard_error():
    # Mean 2.5, sample variance 5/3, so the standard error is sqrt(5/12); z = 1.959964.
    estimate = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    spread = 1.959963984540054 * math.sqrt(5 / 12)
    assert estimate == pytest.approx((2.5, 2.5 - spread, 2.5 + spread, 4))


def test_bootstrap_agrees_with_the_normal_interval_on_many_normal_values():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    ours, normal = bootstrap_interval(values), mean_interval(values)
    assert ours.value == pytest.approx(normal.value)
    assert ours.low == pytest.approx(normal.low, abs=0.004)
    assert ours.high == pytest.approx(normal.high, abs=0.004)
    assert ours == bootstrap_interval(values)
    assert ours != bootstrap_interval(values, seed=1)


def test_accuracy_counts_a_tie_as_one_half():
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 4.0])
    estimate = preference_accuracy(chosen, rejected)
    assert estimate == wilson_interval(2.5, 4)
    assert win_rate(rejected, chosen).value == pytest.approx(1 - estimate.value)


def test_wrong_input_is_an_error():
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="count > 0"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=1.0)
    with pytest.raises(ValueError, match="one length"):
        preference_accuracy(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        preference_accuracy(torch.tensor([math.nan]), torch.zeros(1))
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval(torch.zeros(1))
