import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.soft_dpo import geometric_dpo_loss, soft_dpo_loss

PROBABILITIES = torch.tensor([0.8, 0.35], dtype=torch.float64)
LOSSES = pytest.mark.parametrize("loss", [soft_dpo_loss, geometric_dpo_loss])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_of_soft_dpo_are_a_cross_entropy(pairs, exact):
    # Worked with mpmath, 40 digits, at margins of 0.525 and -0.525.
    output = soft_dpo_loss(**pairs, preference_probabilities=PROBABILITIES, beta=0.3)
    exact(output.losses, [0.56971175467299344, 0.64846175467299344])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_values_of_geometric_dpo_are_those_of_the_paper(pairs, exact):
    # The same, at 0.6 and -0.3 times these margins.
    output = geometric_dpo_loss(**pairs, preference_probabilities=PROBABILITIES, beta=0.3)
    exact(output.losses, [0.54799936306768073, 0.61749476215204995])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_of_soft_dpo_is_the_error_of_the_probability(pairs, exact):
    output = soft_dpo_loss(**pairs, preference_probabilities=PROBABILITIES, beta=0.3)
    output.losses.sum().backward()
    errors = [0.3 * (0.8 - sigmoid(0.525)), 0.3 * (0.35 - sigmoid(-0.525))]
    exact(pairs["chosen_logps"].grad, [-error for error in errors])
    exact(pairs["rejected_logps"].grad, errors)


def test_gradient_of_geometric_dpo_fades_with_the_certainty(pairs, exact):
    output = geometric_dpo_loss(**pairs, preference_probabilities=PROBABILITIES, beta=0.3)
    output.losses.sum().backward()
    slopes = [0.3 * 0.6 * sigmoid(-0.315), 0.3 * -0.3 * sigmoid(-0.1575)]
    exact(pairs["chosen_logps"].grad, [-slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, slopes)


@LOSSES
def test_swapping_the_completions_and_the_probability_changes_nothing(pairs, exact, loss):
    swapped = loss(
        pairs["rejected_logps"],
        pairs["chosen_logps"],
        pairs["ref_rejected_logps"],
        pairs["ref_chosen_logps"],
        1 - PROBABILITIES,
        beta=0.3,
    )
    wanted = loss(**pairs, preference_probabilities=PROBABILITIES, beta=0.3)
    exact(swapped.losses, wanted.losses.tolist())


@LOSSES
def test_policy_equal_to_reference_costs_ln_2(equal_pairs, exact, loss):
    losses = loss(**equal_pairs, preference_probabilities=PROBABILITIES).losses
    exact(losses, [math.log(2)] * 2)


def test_a_coin_toss_has_no_gradient_in_geometric_dpo(pairs, exact):
    output = geometric_dpo_loss(**pairs, preference_probabilities=PROBABILITIES * 0 + 0.5)
    output.losses.sum().backward()
    exact(pairs["chosen_logps"].grad, [0.0, 0.0])


def test_gdpo_is_the_name_of_the_paper():
    assert get_loss("gdpo") is get_loss("geometric_dpo")


@LOSSES
def test_beta_must_be_positive(pairs, loss):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        loss(**pairs, preference_probabilities=PROBABILITIES, beta=0.0)
