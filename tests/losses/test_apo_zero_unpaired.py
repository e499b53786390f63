import math

import pytest
import torch

from prefopt.losses.apo import apo_zero_loss
from prefopt.losses.apo_zero_unpaired import apo_zero_unpaired_loss
from prefopt.losses.kto import kto_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


OPTIONS = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}


def test_values_are_the_weighted_chance_of_the_wrong_label(unpaired, exact):
    # Worked with mpmath, 40 digits: 1.5 (1 - sigmoid(reward)) or 0.7 sigmoid(reward).
    output = apo_zero_unpaired_loss(**unpaired, **OPTIONS)
    exact(
        output.losses,
        [0.63833622478251152, 0.32379910825937532, 0.31079027661876604, 0.61100010006889536],
    )
    exact(output.rewards, [0.3, -0.15, -0.225, 0.375])


def test_gradient_is_the_slope_of_the_sigmoid_with_the_sign_of_the_label(unpaired, exact):
    apo_zero_unpaired_loss(**unpaired, **OPTIONS).losses.sum().backward()
    slopes = [0.3 * sigmoid(r) * sigmoid(-r) for r in (0.3, -0.15, -0.225, 0.375)]
    exact(
        unpaired["logps"].grad,
        [-1.5 * slopes[0], 0.7 * slopes[1], 0.7 * slopes[2], -1.5 * slopes[3]],
    )


def test_it_is_kto_with_its_reference_point_at_zero(unpaired, exact):
    kto = kto_loss(**unpaired, kl=torch.tensor(0.0), **OPTIONS)
    exact(apo_zero_unpaired_loss(**unpaired, **OPTIONS).losses, kto.losses.tolist())


def test_the_two_losses_of_a_pair_sum_to_apo_zero(pairs, exact):
    both = [
        apo_zero_unpaired_loss(
            pairs[f"{side}_logps"],
            pairs[f"ref_{side}_logps"],
            torch.full((2,), side == "chosen"),
            beta=0.6,
        ).losses
        for side in ("chosen", "rejected")
    ]
    exact(sum(both), apo_zero_loss(**pairs, beta=0.6).losses.tolist())


def test_policy_equal_to_reference_costs_half_the_weight(unpaired, exact):
    same = {**unpaired, "ref_logps": unpaired["logps"]}
    exact(apo_zero_unpaired_loss(**same, **OPTIONS).losses, [0.75, 0.35, 0.35, 0.75])


def test_swapping_labels_and_log_ratios_changes_nothing(unpaired, exact):
    swapped = {
        "logps": unpaired["ref_logps"],
        "ref_logps": unpaired["logps"],
        "desirable": ~unpaired["desirable"],
    }
    losses = apo_zero_unpaired_loss(**unpaired).losses.tolist()
    exact(apo_zero_unpaired_loss(**swapped).losses, losses)


def test_hyperparameters_out_of_range_are_refused(unpaired):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        apo_zero_unpaired_loss(**unpaired, beta=0.0)
    for name in ("desirable_weight", "undesirable_weight"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            apo_zero_unpaired_loss(**unpaired, **{name: -1.0})
