import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.plackett_luce import plackett_luce_loss


@pytest.fixture
def ranked(rankings):
    return {name: rankings[name] for name in ("ranked_logps", "ref_ranked_logps")}


def test_values_are_the_likelihood_of_choosing_best_first(ranked, exact):
    # Worked with mpmath, 40 digits, as a product of choices among those that are left.
    output = plackett_luce_loss(**ranked, beta=0.3)
    exact(output.losses, [1.7023786154865329, 2.0402396001952601])
    exact(output.rewards[0], [0.3, -0.15, 0.075])
    exact(output.rewards[1], [-0.225, 0.375, 0.15])


def test_gradient_is_the_expected_minus_the_actual_times_of_being_chosen(ranked, exact):
    plackett_luce_loss(**ranked, beta=0.3).losses.sum().backward()
    for row, ratios in enumerate([(1.0, -0.5, 0.25), (-0.75, 1.25, 0.5)]):
        odds = [math.exp(0.3 * ratio) for ratio in ratios]
        expected = [sum(odds[i] / sum(odds[k:]) for k in range(i + 1)) for i in range(3)]
        exact(ranked["ranked_logps"].grad[row], [0.3 * (times - 1) for times in expected])


def test_two_completions_are_dpo(pairs, exact):
    dpo = dpo_loss(**pairs, beta=0.4).losses.tolist()
    ranked = torch.stack([pairs["chosen_logps"], pairs["rejected_logps"]], 1)
    reference = torch.stack([pairs["ref_chosen_logps"], pairs["ref_rejected_logps"]], 1)
    exact(plackett_luce_loss(ranked, reference, beta=0.4).losses, dpo)


@pytest.mark.parametrize("count", [2, 3, 5, 17])
def test_policy_equal_to_reference_costs_the_log_of_all_orders(count, exact):
    logps = torch.linspace(-9, -2, count, dtype=torch.float64)[None]
    exact(plackett_luce_loss(logps, logps).losses, [math.lgamma(count + 1)])


def test_a_shift_of_all_log_ratios_changes_nothing(ranked, exact):
    shifted = {**ranked, "ref_ranked_logps": ranked["ref_ranked_logps"] - 50}
    exact(plackett_luce_loss(**shifted).losses, plackett_luce_loss(**ranked).losses.tolist())


def test_a_sure_order_costs_nothing_and_its_reverse_every_gap():
    sure = torch.tensor([[3e3, 2e3, 1e3, 0.0], [0.0, 1e3, 2e3, 3e3]], requires_grad=True)
    losses = plackett_luce_loss(sure, torch.zeros(2, 4), beta=1.0).losses
    assert losses.tolist() == [0.0, 3e3 + 2e3 + 1e3]
    losses.sum().backward()
    assert sure.grad.tolist() == [[0, 0, 0, 0], [-1, -1, -1, 3]]


def test_listwise_dpo_is_another_name():
    assert get_loss("listwise_dpo") is get_loss("plackett_luce")


def test_beta_must_be_positive(ranked):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        plackett_luce_loss(**ranked, beta=0.0)
