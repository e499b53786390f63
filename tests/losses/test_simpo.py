import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.simpo import simpo_hinge_loss, simpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def policy(pairs, lengths):
    return {name: pairs[name] for name in ("chosen_logps", "rejected_logps")} | lengths


# Rewards per token times 3: -7.5 against -7.35, and -61.5/7 against -18; the margins less 0.7.
MARGINS = [-0.15 - 0.7, 18 - 61.5 / 7 - 0.7]


def test_values_are_logistic_in_the_margin_of_mean_log_probs(policy, exact):
    # Worked with mpmath, 40 digits, from Eq. 6 of the paper.
    output = simpo_loss(**policy, beta=3.0, gamma=0.7, label_smoothing=0.2)
    exact(output.losses, [1.0358650684421958, 1.7030577050847829])
    exact(output.chosen_rewards, [-7.5, -61.5 / 7])
    exact(output.rejected_rewards, [-7.35, -18.0])


def test_gradient_is_that_of_dpo_divided_by_the_length(policy, exact):
    simpo_loss(**policy, beta=3.0, gamma=0.7, label_smoothing=0.2).losses.sum().backward()
    slopes = [3 * (0.8 * sigmoid(-m) - 0.2 * sigmoid(m)) for m in MARGINS]
    exact(policy["chosen_logps"].grad, [-slopes[0] / 4, -slopes[1] / 7])
    exact(policy["rejected_logps"].grad, [slopes[0] / 5, slopes[1] / 3])


def test_completions_of_equal_mean_cost_the_margin_however_long_they_are(exact):
    chosen = torch.tensor([-2.0, -2.0], dtype=torch.float64)
    rejected = torch.tensor([-20.0, -20.0], dtype=torch.float64)
    losses = simpo_loss(
        chosen, rejected, torch.tensor([1, 1]), torch.tensor([10, 10]), gamma=0.75, beta=5.0
    ).losses
    exact(losses, [math.log1p(math.exp(0.75))] * 2)


def test_hinge_variant_is_zero_beyond_the_margin_and_one(policy, exact):
    output = simpo_hinge_loss(**policy, beta=3.0, gamma=0.7)
    exact(output.losses, [1.85, 0.0])  # by hand: 1 + 0.15 + 0.7, and a margin of 8.5
    exact(output.chosen_rewards, [-7.5, -61.5 / 7])
    exact(output.rejected_rewards, [-7.35, -18.0])
    output.losses.sum().backward()
    exact(policy["chosen_logps"].grad, [-3 / 4, 0.0])
    exact(policy["rejected_logps"].grad, [3 / 5, 0.0])


def test_the_defaults_of_trl_are_warned_about_once(warned):
    get_loss("simpo").check_hyperparameters({})
    assert not warned
    for _ in range(2):
        get_loss("simpo").check_hyperparameters({"beta": 0.1, "gamma": 0.5})
    published = "is outside the published range: Meng et al. 2024, arXiv:2405.14734, used"
    assert sorted(warned) == [
        f"simpo: beta=0.1 {published} 2 to 10",
        f"simpo: gamma / beta=5.0 {published} 0.1 to 0.8",
    ]


@pytest.mark.parametrize("loss", [simpo_loss, simpo_hinge_loss])
def test_hyperparameters_out_of_range_are_refused(policy, loss):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        loss(**policy, beta=0.0)
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        loss(**policy, gamma=-0.1)


def test_label_smoothing_must_be_below_one_half(policy):
    with pytest.raises(ValueError, match=r"label_smoothing must be at least 0 and below 0\.5"):
        simpo_loss(**policy, label_smoothing=0.5)
