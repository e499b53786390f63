import math

import pytest
import torch

from prefopt.losses.bco import bco_loss
from prefopt.losses.dpo import dpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def unpaired(unpaired):
    mean = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    return {**unpaired, "mean_log_ratio": mean}


def test_values_are_cross_entropies_of_the_shifted_reward(unpaired, exact):
    # Worked with mpmath, 40 digits, at a shift of 0.3 * 0.5.
    output = bco_loss(**unpaired, beta=0.3)
    exact(
        output.losses,
        [0.62095704778953208, 0.55435524446852712, 0.52312326413984004, 0.58696200204970371],
    )
    exact(output.rewards, [0.3, -0.15, -0.225, 0.375])


def test_gradient_is_the_error_of_the_classifier(unpaired, exact):
    bco_loss(**unpaired, beta=0.3).losses.sum().backward()
    logits = (0.15, -0.3, -0.375, 0.225)
    labels = (1, 0, 0, 1)
    pairs = zip(logits, labels, strict=True)
    exact(unpaired["logps"].grad, [0.3 * (sigmoid(logit) - label) for logit, label in pairs])


def test_no_gradient_reaches_the_mean(unpaired):
    bco_loss(**unpaired).losses.sum().backward()
    assert unpaired["mean_log_ratio"].grad is None


def test_rewards_at_the_mean_cost_ln_2(unpaired, exact):
    at_mean = {**unpaired, "ref_logps": unpaired["logps"].detach() - 0.5}
    exact(bco_loss(**at_mean, beta=3.0).losses, [math.log(2)] * 4)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.7])
def test_the_two_losses_of_a_pair_bound_its_dpo_loss(pairs, mean):
    both = [
        bco_loss(
            pairs[f"{side}_logps"],
            pairs[f"ref_{side}_logps"],
            torch.full((2,), side == "chosen"),
            torch.tensor(mean),
            beta=0.6,
        ).losses
        for side in ("chosen", "rejected")
    ]
    assert (sum(both) > dpo_loss(**pairs, beta=0.6).losses).all()


def test_beta_must_be_positive(unpaired):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        bco_loss(**unpaired, beta=0.0)
