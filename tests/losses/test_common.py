import logging
import math

import pytest
import torch

from prefopt.losses import common
from prefopt.losses.common import (
    average_logps,
    check_choice,
    check_label_smoothing,
    check_not_negative,
    check_positive,
    exponential,
    head_and_tail,
    published_range,
    require_margin,
    smoothed_logistic,
    warn_outside,
)


def test_a_smoothed_logistic_loss_is_ln_2_at_no_margin_and_bounded_below_by_its_entropy():
    smoothing = 0.25
    best = math.log((1 - smoothing) / smoothing)  # the margin whose probability is 1 - smoothing
    margins = torch.tensor([0.0, best, 2.0], dtype=torch.float64)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    at_2 = math.log(1 + math.exp(-2)) + smoothing * 2  # log sigmoid(-m) = log sigmoid(m) - m
    wanted = torch.tensor([math.log(2), entropy, at_2], dtype=torch.float64)
    torch.testing.assert_close(smoothed_logistic(margins, smoothing), wanted)


def test_average_divides_by_tokens_and_no_tokens_average_to_zero():
    averages = average_logps(torch.tensor([-6.0, 0.0]), torch.tensor([3, 0]))
    assert averages.tolist() == [-2.0, 0.0]


def test_a_tail_counts_by_alpha():
    weighted = head_and_tail(torch.tensor([-6.0, -6.0]), torch.tensor([-2.0, -6.0]), 0.25)
    assert weighted.tolist() == [-2.0 - 0.25 * 4.0, -6.0]


def test_a_required_margin_takes_the_offset_off_the_chosen_reward():
    logps, reference, offsets = torch.tensor([[-3.0], [-5.0], [0.5]])
    rewards = 0.25 * (logps - require_margin(reference, offsets, beta=0.25))
    assert rewards.tolist() == [0.25 * 2.0 - 0.5]


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_positive_means_above_zero_and_finite(value):
    with pytest.raises(ValueError, match="tau must be greater than 0"):
        check_positive(beta=1.0, tau=value)


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_not_negative_means_at_least_zero_and_finite(value):
    check_not_negative(delta=0)
    with pytest.raises(ValueError, match="delta must be at least 0"):
        check_not_negative(delta=value)


def test_a_choice_is_one_of_the_words():
    check_choice("normalize", "sum", ("mean", "sum"))
    with pytest.raises(ValueError, match="normalize must be 'mean' or 'sum', got 'max'"):
        check_choice("normalize", "max", ("mean", "sum"))


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, math.nan])
def test_label_smoothing_is_below_one_half(label_smoothing):
    check_label_smoothing(0.0)
    with pytest.raises(ValueError, match=r"label_smoothing must be at least 0 and below 0\.5"):
        check_label_smoothing(label_smoothing)


def test_exponential_is_exact_up_to_its_limit_and_a_tangent_beyond():
    exponents = torch.tensor([-1e3, 0.0, 1.5, 44.0, 100.0], requires_grad=True)
    values = exponential(exponents)
    values.sum().backward()
    limit = math.log(torch.finfo(torch.float32).max) - 44.4
    steepest = math.exp(limit)
    wanted = [0.0, 1.0, math.exp(1.5), math.exp(44), steepest * (101 - limit)]
    slopes = [*wanted[:4], steepest]
    torch.testing.assert_close(values.detach(), torch.tensor(wanted), rtol=1e-5, atol=0)
    torch.testing.assert_close(exponents.grad, torch.tensor(slopes), rtol=1e-5, atol=0)
    assert (exponents.grad**2).isfinite().all()


def test_a_value_outside_the_published_range_warns_once(warned):
    for value in (0.1, 0.05, 0.2, 0.3, 0.4):
        warn_outside("a: tau", value, 0.05, 0.2, "arXiv:0000.00000")
    assert warned == [
        "a: tau=0.3 is outside the published range: arXiv:0000.00000 used 0.05 to 0.2"
    ]
    warn_outside("a: beta", 2.0, 1.0, 1.0, "arXiv:0000.00000")
    assert warned[1:] == ["a: beta=2.0 is outside the published range: arXiv:0000.00000 used 1"]


def test_a_warning_goes_to_the_logger_of_the_package():
    assert common.logger is logging.getLogger("prefopt")


def test_a_range_is_one_value_or_two_ends():
    assert published_range(0.05, 0.05) == "0.05"
    assert published_range(0.025, 5.0) == "0.025 to 5"
