import math

import pytest
import torch

from prefopt.losses.exo import exo_loss
from prefopt.losses.exo_ranked import exo_ranked_loss


@pytest.fixture
def ranked(rankings):
    return {key: value for key, value in rankings.items() if key != "ranked_lengths"}


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def test_values_are_the_reverse_divergence(ranked, exact):
    # Worked with mpmath, 40 digits: sum of p log(p / q).
    output = exo_ranked_loss(**ranked, beta=0.3, alpha=0.8)
    exact(output.losses, [0.37845005978244741, 0.99740164203456945])
    exact(output.rewards[0], [0.3, -0.15, 0.075])


def test_gradient_moves_the_policys_choice_towards_the_target(ranked, exact):
    output = exo_ranked_loss(**ranked, beta=0.3, alpha=0.8)
    output.losses.sum().backward()
    scores = [(2, 1, 0), (3.5, 1.5, 1.5)]
    for row, ratios in enumerate([(1, -0.5, 0.25), (-0.75, 1.25, 0.5)]):
        policy = softmax([0.3 * ratio for ratio in ratios])
        target = softmax([score / 0.8 for score in scores[row]])
        logs = [math.log(p / q) for p, q in zip(policy, target, strict=True)]
        loss = sum(p * log for p, log in zip(policy, logs, strict=True))
        slopes = [0.3 * p * (log - loss) for p, log in zip(policy, logs, strict=True)]
        exact(ranked["ranked_logps"].grad[row], slopes)


def test_two_completions_are_exo_on_pairs_with_the_targets_second_share(pairs, exact):
    ranked = torch.stack([pairs["chosen_logps"], pairs["rejected_logps"]], 1)
    reference = torch.stack([pairs["ref_chosen_logps"], pairs["ref_rejected_logps"]], 1)
    scores = 0.7 * torch.tensor([[0.8, 0.2]], dtype=torch.float64).log().expand(2, 2)
    output = exo_ranked_loss(ranked, reference, scores, beta=0.4, alpha=0.7)
    pairwise = exo_loss(**pairs, beta=0.4, label_smoothing=0.2)
    exact(output.losses, pairwise.losses.tolist())
    exact(output.rewards[:, 0], pairwise.chosen_rewards.tolist())
    exact(output.rewards[:, 1], pairwise.rejected_rewards.tolist())


def test_it_is_zero_where_the_policys_choice_is_the_target(ranked, exact):
    fitted = {**ranked, "ref_ranked_logps": torch.zeros(2, 3, dtype=torch.float64)}
    fitted["ranked_logps"] = ranked["ranked_scores"] / (0.8 * 0.3) - 7
    exact(exo_ranked_loss(**fitted, beta=0.3, alpha=0.8).losses, [0.0, 0.0])


def test_shifts_of_scores_and_of_log_ratios_change_nothing(ranked, exact):
    shifted = {**ranked, "ranked_scores": ranked["ranked_scores"] + 5}
    shifted["ref_ranked_logps"] = ranked["ref_ranked_logps"] - 3
    exact(exo_ranked_loss(**shifted).losses, exo_ranked_loss(**ranked).losses.tolist())


@pytest.mark.parametrize("name", ["beta", "alpha"])
def test_hyperparameters_must_be_positive(ranked, name):
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        exo_ranked_loss(**ranked, **{name: 0.0})
