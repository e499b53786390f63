import math

import pytest
import torch

from prefopt.losses.rpo import rpo_loss

MARGINS = torch.tensor([2.5, 0.4], dtype=torch.float64)
DISTANCES = pytest.mark.parametrize("distance", ["backward_kl", "forward_kl", "squared"])
# Worked with mpmath, 40 digits: reward margins 0.525 and -0.525 against 1.5 and 0.24.
VALUES = {
    "backward_kl": [0.085433590979043599, 0.072562729735970203],
    "forward_kl": [0.099093239721776891, 0.071280095999387569],
    "squared": [0.950625, 0.585225],
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@DISTANCES
def test_values_are_the_distances_of_the_report(pairs, exact, distance):
    output = rpo_loss(**pairs, margins=MARGINS, beta=0.3, eta=0.6, distance=distance)
    exact(output.losses, VALUES[distance])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradients_vanish_with_the_distance_from_the_wanted_margin(pairs, exact):
    points = [(0.525, 1.5), (-0.525, 0.24)]
    slopes = {
        "backward_kl": [sigmoid(m) - sigmoid(g) for m, g in points],
        "forward_kl": [sigmoid(m) * sigmoid(-m) * (m - g) for m, g in points],
        "squared": [2 * (m - g) for m, g in points],
    }
    for distance, wanted in slopes.items():
        pairs["chosen_logps"].grad = pairs["rejected_logps"].grad = None
        output = rpo_loss(**pairs, margins=MARGINS, beta=0.3, eta=0.6, distance=distance)
        output.losses.sum().backward()
        exact(pairs["chosen_logps"].grad, [0.3 * slope for slope in wanted])
        exact(pairs["rejected_logps"].grad, [-0.3 * slope for slope in wanted])


@DISTANCES
def test_a_margin_of_the_rewards_costs_nothing(pairs, exact, distance):
    wanted = torch.tensor([1.75, -1.75], dtype=torch.float64)
    output = rpo_loss(**pairs, margins=wanted, beta=0.5, eta=0.5, distance=distance)
    exact(output.losses, [0.0, 0.0])


@DISTANCES
def test_policy_equal_to_reference_without_better_completion_costs_nothing(
    equal_pairs, exact, distance
):
    exact(rpo_loss(**equal_pairs, margins=MARGINS * 0, distance=distance).losses, [0.0, 0.0])


@DISTANCES
def test_finite_with_finite_gradient_in_float32_at_thousands(distance):
    chosen = torch.tensor([-2e3, 2e3, -2e3, 2e3], requires_grad=True)
    zero = torch.zeros(4)
    margins = torch.tensor([1e3, 1e3, -1e3, -1e3])
    losses = rpo_loss(chosen, zero, zero, zero, margins, beta=1.0, distance=distance).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert chosen.grad.isfinite().all()


def test_hyperparameters_must_be_in_range(pairs):
    for name in ("beta", "eta"):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
            rpo_loss(**pairs, margins=MARGINS, **{name: 0.0})
    with pytest.raises(ValueError, match=r"distance must be 'backward_kl' or .*, got 'l1'"):
        rpo_loss(**pairs, margins=MARGINS, distance="l1")
