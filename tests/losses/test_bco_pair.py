import math

import pytest
import torch

from prefopt.losses.bco_pair import bco_pair_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def mean_log_ratio():
    return torch.tensor(0.7, dtype=torch.float64, requires_grad=True)


def test_values_are_those_of_the_paper(pairs, mean_log_ratio, exact):
    # Worked with mpmath, 40 digits, at rewards 0.3, -0.225 and -0.15, 0.375 around 0.21.
    output = bco_pair_loss(**pairs, mean_log_ratio=mean_log_ratio, beta=0.3)
    exact(output.losses, [1.1482754737759285, 1.6683069011625247])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_without_shift_rewards_are_compared_with_zero(pairs, mean_log_ratio, exact):
    output = bco_pair_loss(**pairs, mean_log_ratio=mean_log_ratio, beta=0.3, shift=False)
    exact(output.losses, [1.1413172465182308, 1.6690803119293721])


def test_gradient_is_that_of_two_classifiers_and_spares_the_threshold(pairs, mean_log_ratio, exact):
    bco_pair_loss(**pairs, mean_log_ratio=mean_log_ratio, beta=0.3).losses.sum().backward()
    exact(pairs["chosen_logps"].grad, [-0.3 * sigmoid(0.21 - r) for r in (0.3, -0.15)])
    exact(pairs["rejected_logps"].grad, [0.3 * sigmoid(r - 0.21) for r in (-0.225, 0.375)])
    assert mean_log_ratio.grad is None


def test_moving_every_log_ratio_and_their_mean_changes_nothing(pairs, mean_log_ratio, exact):
    moved = {**pairs, "ref_chosen_logps": pairs["ref_chosen_logps"] - 3}
    moved["ref_rejected_logps"] = pairs["ref_rejected_logps"] - 3
    output = bco_pair_loss(**moved, mean_log_ratio=mean_log_ratio + 3, beta=0.3)
    exact(output.losses, [1.1482754737759285, 1.6683069011625247])


def test_policy_equal_to_reference_costs_2_ln_2(equal_pairs, exact):
    output = bco_pair_loss(**equal_pairs, mean_log_ratio=torch.tensor(0.0))
    exact(output.losses, [2 * math.log(2)] * 2)


def test_beta_must_be_positive(pairs, mean_log_ratio):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        bco_pair_loss(**pairs, mean_log_ratio=mean_log_ratio, beta=0.0)
