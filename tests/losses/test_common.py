import math

import pytest
import torch

from prefopt.losses.common import average_logps, check_choice, check_not_negative, check_positive


def test_average_divides_by_tokens_and_no_tokens_average_to_zero():
    averages = average_logps(torch.tensor([-6.0, 0.0]), torch.tensor([3, 0]))
    assert averages.tolist() == [-2.0, 0.0]


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
