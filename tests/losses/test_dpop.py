import math

import pytest

from prefopt.losses import get_loss
from prefopt.losses.dpop import dpop_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits: only the second chosen log-ratio, -0.5, pays the penalty.
    output = dpop_loss(**pairs, beta=0.3, lambda_=2.0)
    exact(output.losses, [0.46471175467299344, 1.1884166621265709])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_pushes_a_fallen_chosen_completion_one_plus_lambda_times(pairs, exact):
    dpop_loss(**pairs, beta=0.3, lambda_=2.0).losses.sum().backward()
    slopes = [0.3 * sigmoid(-0.525), 0.3 * sigmoid(0.825)]
    exact(pairs["chosen_logps"].grad, [-slopes[0], -3 * slopes[1]])
    exact(pairs["rejected_logps"].grad, slopes)


def test_policy_equal_to_reference_costs_ln_2(equal_pairs, exact):
    exact(dpop_loss(**equal_pairs).losses, [math.log(2)] * 2)


def test_smaug_is_another_name():
    assert get_loss("smaug") is get_loss("dpop")


def test_hyperparameters_must_be_in_range(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        dpop_loss(**pairs, beta=0.0)
    with pytest.raises(ValueError, match="lambda_ must be at least 0"):
        dpop_loss(**pairs, lambda_=-1.0)
