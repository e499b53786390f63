import math

import pytest
import torch

from prefopt.losses.dpo import dpo_loss
from prefopt.losses.lipo import lipo_loss


@pytest.fixture
def ranked(rankings):
    return {key: value for key, value in rankings.items() if key != "ranked_lengths"}


def swap_cost(gains: float, place: int, other: int) -> float:
    return gains * abs(1 / math.log(1 + place) - 1 / math.log(1 + other))


def test_values_weigh_each_pair_by_what_its_swap_would_cost(ranked, exact):
    # Worked with mpmath, 40 digits, pair by pair; the two with equal scores are none.
    output = lipo_loss(**ranked, beta=0.3, score_scale=0.5)
    exact(output.losses, [0.58448556253003647, 1.5439487112341421])
    exact(output.rewards[1], [-0.225, 0.375, 0.15])


def test_gradient_is_that_of_weighted_dpo_with_fixed_weights(ranked, exact):
    lipo_loss(**ranked, beta=0.3, score_scale=0.5).losses.sum().backward()
    # By the policy's rewards the places are 1, 3, 2 in the first row and 3, 1, 2 in the second.
    root = math.sqrt(2)
    high, low = 2**1.75, 2**0.75
    cases = [
        (
            (0.3, -0.15, 0.075),
            {
                (0, 1): swap_cost(2 - root, 1, 3),
                (0, 2): swap_cost(2 - 1, 1, 2),
                (1, 2): swap_cost(root - 1, 3, 2),
            },
        ),
        (
            (-0.225, 0.375, 0.15),
            {(0, 1): swap_cost(high - low, 3, 1), (0, 2): swap_cost(high - low, 3, 2)},
        ),
    ]
    for row, (rewards, weights) in enumerate(cases):
        slopes = [0.0, 0.0, 0.0]
        for (better, worse), weight in weights.items():
            slope = 0.3 * weight / (1 + math.exp(rewards[better] - rewards[worse]))
            slopes[better] -= slope
            slopes[worse] += slope
        exact(ranked["ranked_logps"].grad[row], slopes)


def test_two_completions_are_dpo_times_a_constant_whoever_leads(pairs, exact):
    dpo = dpo_loss(**pairs, beta=0.4).losses
    constant = (2**3 - 2**1) * (1 / math.log(2) - 1 / math.log(3))
    ranked = torch.stack([pairs["chosen_logps"], pairs["rejected_logps"]], 1)
    reference = torch.stack([pairs["ref_chosen_logps"], pairs["ref_rejected_logps"]], 1)
    scores = torch.tensor([[3, 1], [3, 1]])
    losses = lipo_loss(ranked, reference, scores, beta=0.4).losses
    exact(losses, (constant * dpo).tolist())


def test_the_order_of_the_columns_is_immaterial(ranked, exact):
    moved = {name: value[:, [2, 0, 1]] for name, value in ranked.items()}
    exact(lipo_loss(**moved).losses, lipo_loss(**ranked).losses.tolist())


def test_one_more_in_every_score_doubles_the_weights(ranked, exact):
    higher = {**ranked, "ranked_scores": ranked["ranked_scores"] + 1}
    exact(lipo_loss(**higher).losses, (2 * lipo_loss(**ranked).losses).tolist())


def test_equal_scores_cost_nothing(ranked):
    tied = {**ranked, "ranked_scores": torch.full((2, 3), 4.0)}
    assert lipo_loss(**tied).losses.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["beta", "score_scale"])
def test_hyperparameters_must_be_positive(ranked, name):
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        lipo_loss(**ranked, **{name: 0.0})
