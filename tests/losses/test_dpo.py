import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.dpo import dpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_cdpo_equation(pairs, exact):
    # Worked with mpmath, 40 digits, from Eq. 3 of the cDPO note at margins of 0.525 and -0.525.
    output = dpo_loss(**pairs, beta=0.3, label_smoothing=0.2)
    exact(output.losses, [0.56971175467299344, 0.88471175467299344])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_weighs_a_pair_by_the_sigmoid_of_the_reversed_margin(pairs, exact):
    dpo_loss(**pairs, beta=0.3, label_smoothing=0.2).losses.sum().backward()
    slopes = [0.3 * (0.8 * sigmoid(-m) - 0.2 * sigmoid(m)) for m in (0.525, -0.525)]
    exact(pairs["chosen_logps"].grad, [-slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, slopes)


def test_policy_equal_to_reference_costs_ln_2(pairs, exact):
    same = {**pairs, "ref_chosen_logps": pairs["chosen_logps"]}
    same["ref_rejected_logps"] = pairs["rejected_logps"]
    exact(dpo_loss(**same).losses, [math.log(2)] * 2)
    exact(dpo_loss(**same, beta=3.0, label_smoothing=0.4).losses, [math.log(2)] * 2)


def test_large_margins_cost_nothing_or_their_size():
    zero = torch.zeros(2, dtype=torch.float64)
    chosen = torch.tensor([1e3, -1e3], dtype=torch.float64)
    losses = dpo_loss(chosen, zero, zero, zero, beta=1.0).losses
    assert losses.tolist() == [0.0, 1e3]


def test_sigmoid_is_the_name_trl_uses():
    assert get_loss("sigmoid") is get_loss("dpo")


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_beta_must_be_positive_and_finite(pairs, beta):
    with pytest.raises(ValueError, match="beta must be greater than 0 and finite"):
        dpo_loss(**pairs, beta=beta)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_label_smoothing_must_be_below_one_half(pairs, label_smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be at least 0 and below 0\.5"):
        dpo_loss(**pairs, label_smoothing=label_smoothing)
