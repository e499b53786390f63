import math

import pytest

from prefopt.losses.apo import apo_down_loss, apo_zero_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(x: float) -> float:
    return sigmoid(x) * sigmoid(-x)


def test_values_of_apo_zero_are_those_of_the_paper_plus_one(pairs, exact):
    # Worked with mpmath, 40 digits, at rewards 0.3, -0.225 and -0.15, 0.375.
    output = apo_zero_loss(**pairs, beta=0.3)
    exact(output.losses, [0.86954359264372107, 1.1300964452978193])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_values_of_apo_down_are_those_of_the_paper_plus_one(pairs, exact):
    # Worked with mpmath, 40 digits, at the same rewards and margins of 0.525 and -0.525.
    output = apo_down_loss(**pairs, beta=0.3)
    exact(output.losses, [0.94612632851629275, 1.0908863429516167])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_of_apo_zero_raises_the_chosen_and_lowers_the_rejected(pairs, exact):
    apo_zero_loss(**pairs, beta=0.3).losses.sum().backward()
    exact(pairs["chosen_logps"].grad, [-0.3 * slope(r) for r in (0.3, -0.15)])
    exact(pairs["rejected_logps"].grad, [0.3 * slope(r) for r in (-0.225, 0.375)])


def test_gradient_of_apo_down_lowers_both_near_the_reference(pairs, equal_pairs, exact):
    apo_down_loss(**pairs, beta=0.3).losses.sum().backward()
    pushes = [0.3 * slope(0.525), 0.3 * slope(-0.525)]
    falls = [0.3 * slope(0.3), 0.3 * slope(-0.15)]
    wanted = [fall - push for fall, push in zip(falls, pushes, strict=True)]
    exact(pairs["chosen_logps"].grad, wanted)
    exact(pairs["rejected_logps"].grad, pushes)


@pytest.mark.parametrize("loss", [apo_zero_loss, apo_down_loss])
def test_policy_equal_to_reference_costs_one(equal_pairs, exact, loss):
    exact(loss(**equal_pairs, beta=2.0).losses, [1.0, 1.0])


@pytest.mark.parametrize("loss", [apo_zero_loss, apo_down_loss])
def test_beta_must_be_positive(pairs, loss):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        loss(**pairs, beta=0.0)
