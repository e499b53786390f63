import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.nca import nca_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits, at rewards 0.3, -0.225 and -0.15, 0.375.
    output = nca_loss(**pairs, beta=0.3)
    exact(output.losses, [1.2750138677276425, 1.5304972037542181])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_pulls_the_chosen_reward_to_a_finite_value(pairs, exact):
    nca_loss(**pairs, beta=0.3).losses.sum().backward()
    exact(pairs["chosen_logps"].grad, [0.3 * (1.5 * sigmoid(r) - 1) for r in (0.3, -0.15)])
    exact(pairs["rejected_logps"].grad, [0.15 * sigmoid(r) for r in (-0.225, 0.375)])


def test_the_chosen_reward_rests_at_ln_2():
    chosen = torch.tensor([math.log(2) / 0.1], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    nca_loss(chosen, zero, zero, zero, beta=0.1).losses.sum().backward()
    assert chosen.grad.abs().max() < 1e-15


def test_policy_equal_to_reference_costs_2_ln_2(equal_pairs, exact):
    exact(nca_loss(**equal_pairs, beta=2.0).losses, [2 * math.log(2)] * 2)


def test_nca_pair_is_the_name_trl_uses():
    assert get_loss("nca_pair") is get_loss("nca")


def test_beta_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        nca_loss(**pairs, beta=0.0)
