import math

import pytest
import torch

from prefopt.losses.cal_dpo import cal_dpo_loss
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.sppo import sppo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits, with targets of 1.25 and -1.25 nats.
    output = cal_dpo_loss(**pairs, beta=0.4)
    exact(output.losses, [0.47272415043808723, 11.222724150438087])
    exact(output.chosen_rewards, [0.4, -0.2])
    exact(output.rejected_rewards, [-0.3, 0.5])


def test_gradient_is_that_of_dpo_plus_the_distance_from_the_targets(pairs, exact):
    cal_dpo_loss(**pairs, beta=0.4).losses.sum().backward()
    pulls = [sigmoid(-1.75), sigmoid(1.75)]
    exact(pairs["chosen_logps"].grad, [2 * -0.25 - pulls[0], 2 * -1.75 - pulls[1]])
    exact(pairs["rejected_logps"].grad, [2 * 0.5 + pulls[0], 2 * 2.5 + pulls[1]])


def test_it_is_dpo_at_beta_one_plus_twice_hard_sppo(pairs, exact):
    certain = {"chosen_win_rates": torch.ones(2), "rejected_win_rates": torch.zeros(2)}
    calibration = 2 * sppo_loss(**pairs, **certain, beta=0.4).losses
    wanted = dpo_loss(**pairs, beta=1.0).losses + calibration
    exact(cal_dpo_loss(**pairs, beta=0.4).losses, wanted.tolist())


def test_policy_equal_to_reference_costs_ln_2_and_both_targets(equal_pairs, exact):
    exact(cal_dpo_loss(**equal_pairs, beta=0.5).losses, [math.log(2) + 2] * 2)


def test_beta_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        cal_dpo_loss(**pairs, beta=0.0)
