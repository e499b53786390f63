import math

import pytest

from prefopt.losses import get_loss
from prefopt.losses.r_dpo import r_dpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_paper(pairs, lengths, exact):
    # Worked with mpmath, 40 digits, at margins of 0.525 - 0.4 and -0.525 + 1.6.
    output = r_dpo_loss(**pairs, **lengths, beta=0.3, alpha=0.4)
    exact(output.losses, [0.63259903531716907, 0.29363761939956404])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_is_smaller_where_the_chosen_completion_is_longer(pairs, lengths, exact):
    r_dpo_loss(**pairs, **lengths, beta=0.3, alpha=0.4).losses.sum().backward()
    slopes = [0.3 * sigmoid(-0.125), 0.3 * sigmoid(-1.075)]
    exact(pairs["chosen_logps"].grad, [-slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, slopes)


def test_policy_equal_to_reference_is_pulled_less_towards_the_longer_completion(
    equal_pairs, lengths, exact
):
    # One token shorter, four tokens longer.
    losses = r_dpo_loss(**equal_pairs, **lengths, alpha=0.4).losses
    exact(losses, [math.log1p(math.exp(0.4)), math.log1p(math.exp(-1.6))])


def test_length_dpo_is_another_name():
    assert get_loss("length_dpo") is get_loss("r_dpo")


def test_hyperparameters_must_be_in_range(pairs, lengths):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        r_dpo_loss(**pairs, **lengths, beta=0.0)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        r_dpo_loss(**pairs, **lengths, alpha=-0.1)
