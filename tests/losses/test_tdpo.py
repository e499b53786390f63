import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.tdpo import tdpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def divergences():
    return {
        "chosen_divergences": torch.tensor([0.6, 0.2], dtype=torch.float64, requires_grad=True),
        "rejected_divergences": torch.tensor([0.1, 0.9], dtype=torch.float64, requires_grad=True),
    }


def test_values_are_those_of_the_paper(pairs, divergences, exact):
    # Worked with mpmath, 40 digits: margins of 0.3 (1.75 + 0.7 * 0.5), 0.3 (-1.75 - 0.7 * 0.7).
    output = tdpo_loss(**pairs, **divergences, beta=0.3, alpha=0.7)
    exact(output.losses, [0.42696028981187661, 1.0845639736768988])
    exact(output.chosen_rewards, [0.3 * 1.6, 0.3 * -0.3])
    exact(output.rejected_rewards, [0.3 * -0.65, 0.3 * 2.15])


def test_gradient_lowers_the_rejected_divergence_and_spares_the_chosen(pairs, divergences, exact):
    tdpo_loss(**pairs, **divergences, beta=0.3, alpha=0.7).losses.sum().backward()
    slopes = [0.3 * sigmoid(-0.63), 0.3 * sigmoid(0.672)]
    exact(pairs["chosen_logps"].grad, [-slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, slopes)
    exact(divergences["rejected_divergences"].grad, [0.7 * slope for slope in slopes])
    assert divergences["chosen_divergences"].grad is None


def test_tdpo1_has_the_same_value_at_alpha_one_and_the_chosen_gradient(pairs, divergences, exact):
    first = tdpo_loss(**pairs, **divergences, beta=0.3, alpha=1.0, stop_gradient=False).losses
    exact(first, tdpo_loss(**pairs, **divergences, beta=0.3, alpha=1.0).losses.tolist())
    first.sum().backward()
    slopes = [0.3 * sigmoid(-0.3 * 2.25), 0.3 * sigmoid(0.3 * 2.45)]
    exact(divergences["chosen_divergences"].grad, [-slope for slope in slopes])


def test_policy_equal_to_reference_costs_ln_2(equal_pairs, exact):
    zero = torch.zeros(2, dtype=torch.float64)
    exact(
        tdpo_loss(**equal_pairs, chosen_divergences=zero, rejected_divergences=zero).losses,
        [math.log(2)] * 2,
    )


def test_tdpo2_is_another_name():
    assert get_loss("tdpo2") is get_loss("tdpo")


def test_hyperparameters_must_be_in_range(pairs, divergences):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        tdpo_loss(**pairs, **divergences, beta=0.0)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        tdpo_loss(**pairs, **divergences, alpha=-0.1)
