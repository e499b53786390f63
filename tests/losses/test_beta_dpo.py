import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.beta_dpo import beta_dpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def mean_margin():
    return torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)


def test_values_are_dpo_at_the_batchs_beta(pairs, mean_margin, exact):
    # Worked with mpmath, 40 digits: the mean margin is 0, half a nat above the running mean, and
    # beta is 0.3 (1 + 0.4 / 2) = 0.36.
    output = beta_dpo_loss(**pairs, mean_margin=mean_margin, beta=0.3, alpha=0.4)
    exact(output.losses, [0.42696028981187661, 1.0569602898118766])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_takes_the_batchs_beta_for_a_constant(pairs, mean_margin, exact):
    output = beta_dpo_loss(**pairs, mean_margin=mean_margin, beta=0.3, alpha=0.4)
    output.losses.sum().backward()
    slopes = [0.36 * sigmoid(-m) for m in (0.63, -0.63)]
    exact(pairs["chosen_logps"].grad, [-slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, slopes)
    assert mean_margin.grad is None


def test_beta_does_not_fall_below_its_floor(pairs, exact):
    far_above = torch.tensor(100.0, dtype=torch.float64)
    losses = beta_dpo_loss(**pairs, mean_margin=far_above).losses
    exact(losses, [math.log1p(math.exp(-0.00175)), math.log1p(math.exp(0.00175))])


def test_policy_equal_to_reference_costs_ln_2(equal_pairs, mean_margin, exact):
    exact(beta_dpo_loss(**equal_pairs, mean_margin=mean_margin).losses, [math.log(2)] * 2)


def test_it_depends_on_the_batch():
    assert get_loss("beta_dpo").batch_dependent


def test_hyperparameters_must_be_in_range(pairs, mean_margin):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        beta_dpo_loss(**pairs, mean_margin=mean_margin, beta=0.0)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        beta_dpo_loss(**pairs, mean_margin=mean_margin, alpha=-0.1)
