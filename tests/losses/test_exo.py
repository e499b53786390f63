import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.exo import exo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_the_reverse_kl_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits, at margins of 0.525 and -0.525.
    output = exo_loss(**pairs, beta=0.3, label_smoothing=0.2)
    exact(output.losses, [0.078560967781964577, 0.43432898433049322])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_is_the_variance_of_the_label_times_the_distance_in_logits(pairs, exact):
    exo_loss(**pairs, beta=0.3, label_smoothing=0.2).losses.sum().backward()
    slopes = [0.3 * sigmoid(m) * sigmoid(-m) * (m - math.log(0.8 / 0.2)) for m in (0.525, -0.525)]
    exact(pairs["chosen_logps"].grad, slopes)
    exact(pairs["rejected_logps"].grad, [-slope for slope in slopes])


def test_the_margin_of_the_smoothed_label_costs_nothing(exact):
    zero = torch.zeros(1, dtype=torch.float64)
    chosen = torch.full((1,), math.log(0.9 / 0.1) / 0.5, dtype=torch.float64)
    exact(exo_loss(chosen, zero, zero, zero, beta=0.5, label_smoothing=0.1).losses, [0.0])


def test_large_margins_cost_a_constant(exact):
    zero = torch.zeros(2, dtype=torch.float64)
    chosen = torch.tensor([1e3, -1e3], dtype=torch.float64)
    losses = exo_loss(chosen, zero, zero, zero, beta=1.0, label_smoothing=0.1).losses
    exact(losses, [-math.log(0.9), -math.log(0.1)])


def test_policy_equal_to_reference_costs_the_kl_from_a_coin_toss(equal_pairs, exact):
    wanted = -math.log(2) - (math.log(0.9) + math.log(0.1)) / 2
    exact(exo_loss(**equal_pairs, beta=3.0, label_smoothing=0.1).losses, [wanted] * 2)


def test_exo_pair_is_the_name_trl_uses():
    assert get_loss("exo_pair") is get_loss("exo")


def test_beta_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        exo_loss(**pairs, beta=0.0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.5])
def test_label_smoothing_must_be_above_zero_and_below_one_half(pairs, label_smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be above 0 and below 0\.5"):
        exo_loss(**pairs, label_smoothing=label_smoothing)
