import math

import pytest
import torch

from prefopt.losses.dpo import dpo_loss
from prefopt.losses.infonca import infonca_loss


@pytest.fixture
def ranked(rankings):
    return {key: value for key, value in rankings.items() if key != "ranked_lengths"}


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def test_values_are_the_cross_entropy(ranked, exact):
    # Worked with mpmath, 40 digits: -sum of q log p.
    output = infonca_loss(**ranked, beta=0.3, alpha=0.8)
    exact(output.losses, [0.99811600134971855, 1.3845308740008814])
    exact(output.rewards[0], [0.3, -0.15, 0.075])


def test_gradient_is_the_policys_share_minus_the_target(ranked, exact):
    infonca_loss(**ranked, beta=0.3, alpha=0.8).losses.sum().backward()
    scores = [(2, 1, 0), (3.5, 1.5, 1.5)]
    for row, ratios in enumerate([(1, -0.5, 0.25), (-0.75, 1.25, 0.5)]):
        policy = softmax([0.3 * ratio for ratio in ratios])
        target = softmax([score / 0.8 for score in scores[row]])
        slopes = [0.3 * (p - q) for p, q in zip(policy, target, strict=True)]
        exact(ranked["ranked_logps"].grad[row], slopes)


def test_a_sharp_target_on_two_completions_is_dpo(pairs, exact):
    ranked = torch.stack([pairs["chosen_logps"], pairs["rejected_logps"]], 1)
    reference = torch.stack([pairs["ref_chosen_logps"], pairs["ref_rejected_logps"]], 1)
    scores = torch.tensor([[1.0, 0.0]]).expand(2, 2)
    losses = infonca_loss(ranked, reference, scores, beta=0.4, alpha=0.01).losses
    exact(losses, dpo_loss(**pairs, beta=0.4).losses.tolist())


@pytest.mark.parametrize("count", [2, 4, 9])
def test_policy_equal_to_reference_costs_the_log_of_the_count(count, exact):
    logps = torch.linspace(-9, -2, count, dtype=torch.float64)[None]
    exact(infonca_loss(logps, logps, -logps, alpha=1.0).losses, [math.log(count)])


def test_shifts_of_scores_and_of_log_ratios_change_nothing(ranked, exact):
    shifted = {**ranked, "ranked_scores": ranked["ranked_scores"] + 5}
    shifted["ref_ranked_logps"] = ranked["ref_ranked_logps"] - 3
    losses = infonca_loss(**ranked, alpha=0.5).losses.tolist()
    exact(infonca_loss(**shifted, alpha=0.5).losses, losses)


@pytest.mark.parametrize("name", ["beta", "alpha"])
def test_hyperparameters_must_be_positive(ranked, name):
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        infonca_loss(**ranked, **{name: 0.0})
