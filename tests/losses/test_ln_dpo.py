import math

import pytest

from prefopt.losses import get_loss
from prefopt.losses.ln_dpo import ln_dpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_paper(pairs, lengths, exact):
    # Worked with mpmath, 40 digits, at margins of 1.5 (1/4 + 0.75/5) and -1.5 (0.5/7 + 1.25/3).
    output = ln_dpo_loss(**pairs, **lengths, beta=1.5)
    exact(output.losses, [0.43748795048588563, 1.1247776297886631])
    exact(output.chosen_rewards, [1.5 / 4, -0.75 / 7])
    exact(output.rejected_rewards, [-1.125 / 5, 1.875 / 3])


def test_gradient_is_shared_by_the_tokens(pairs, lengths, exact):
    ln_dpo_loss(**pairs, **lengths, beta=1.5).losses.sum().backward()
    slopes = [1.5 * sigmoid(-0.6), 1.5 * sigmoid(1.5 * (0.5 / 7 + 1.25 / 3))]
    exact(pairs["chosen_logps"].grad, [-slopes[0] / 4, -slopes[1] / 7])
    exact(pairs["rejected_logps"].grad, [slopes[0] / 5, slopes[1] / 3])


def test_policy_equal_to_reference_costs_ln_2(equal_pairs, lengths, exact):
    exact(ln_dpo_loss(**equal_pairs, **lengths).losses, [math.log(2)] * 2)


def test_sigmoid_norm_and_dpo_norm_are_the_names_of_trl_and_open_instruct():
    assert get_loss("sigmoid_norm") is get_loss("dpo_norm") is get_loss("ln_dpo")


def test_a_beta_meant_for_sums_warns(warned):
    get_loss("ln_dpo").check_hyperparameters({"beta": 0.1})
    assert warned == [
        "ln_dpo: beta=0.1 is outside the published range: "
        "Lambert et al. 2024, arXiv:2411.15124, used 2 to 15"
    ]


def test_beta_must_be_positive(pairs, lengths):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        ln_dpo_loss(**pairs, **lengths, beta=0.0)
