import math

import pytest
import torch

from prefopt.losses.odpo import odpo_loss

MARGINS = torch.tensor([2.5, 0.4], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_of_the_log_are_those_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits, at margins of 0.525 - 0.6 ln 2.5 and -0.525 - 0.6 ln 0.4.
    output = odpo_loss(**pairs, margins=MARGINS, beta=0.3, alpha=0.6)
    exact(output.losses, [0.70561111976444558, 0.68083668063995254])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_values_of_the_identity_are_those_of_the_paper(pairs, exact):
    # The same, at margins of 0.525 - 1.5 and -0.525 - 0.24.
    output = odpo_loss(**pairs, margins=MARGINS, beta=0.3, alpha=0.6, scale="identity")
    exact(output.losses, [1.2950469003053, 1.1470831557264442])


def test_gradient_is_larger_the_better_the_chosen_completion(pairs, exact):
    odpo_loss(**pairs, margins=MARGINS, beta=0.3, alpha=0.6).losses.sum().backward()
    slopes = [
        0.3 * sigmoid(0.6 * math.log(2.5) - 0.525),
        0.3 * sigmoid(0.6 * math.log(0.4) + 0.525),
    ]
    exact(pairs["chosen_logps"].grad, [-slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, slopes)


def test_policy_equal_to_reference_costs_the_log_of_one_plus_the_margin(equal_pairs, exact):
    losses = odpo_loss(**equal_pairs, margins=MARGINS).losses
    exact(losses, [math.log1p(2.5), math.log1p(0.4)])


def test_a_pair_without_a_better_completion_has_no_loss_and_no_gradient(pairs, exact):
    margins = torch.tensor([0.0, -2.0], dtype=torch.float64)
    losses = odpo_loss(**pairs, margins=margins).losses
    losses.sum().backward()
    exact(losses, [0.0, 0.0])
    exact(pairs["chosen_logps"].grad, [0.0, 0.0])


def test_hyperparameters_must_be_in_range(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        odpo_loss(**pairs, margins=MARGINS, beta=0.0)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        odpo_loss(**pairs, margins=MARGINS, alpha=-0.1)
    with pytest.raises(ValueError, match="scale must be 'log' or 'identity', got 'square'"):
        odpo_loss(**pairs, margins=MARGINS, scale="square")
