import math

import pytest
import torch

from prefopt.losses.nca import nca_loss
from prefopt.losses.nca_ranked import nca_ranked_loss


@pytest.fixture
def ranked(rankings):
    return {key: value for key, value in rankings.items() if key != "ranked_lengths"}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def test_values_weigh_attraction_by_the_target_and_repulsion_by_one_over_k(ranked, exact):
    # Worked with mpmath, 40 digits: -sum of q log sigmoid(r) + log sigmoid(-r) / K.
    output = nca_ranked_loss(**ranked, beta=0.3, alpha=0.8)
    exact(output.losses, [1.3413709055093169, 1.5301425867728052])
    exact(output.rewards[0], [0.3, -0.15, 0.075])


def test_gradient_balances_attraction_and_repulsion(ranked, exact):
    nca_ranked_loss(**ranked, beta=0.3, alpha=0.8).losses.sum().backward()
    scores = [(2, 1, 0), (3.5, 1.5, 1.5)]
    for row, ratios in enumerate([(1, -0.5, 0.25), (-0.75, 1.25, 0.5)]):
        target = softmax([score / 0.8 for score in scores[row]])
        slopes = [
            0.3 * (sigmoid(0.3 * ratio) / 3 - q * sigmoid(-0.3 * ratio))
            for ratio, q in zip(ratios, target, strict=True)
        ]
        exact(ranked["ranked_logps"].grad[row], slopes)


def test_a_sharp_target_on_two_completions_is_nca_on_pairs(pairs, exact):
    ranked = torch.stack([pairs["chosen_logps"], pairs["rejected_logps"]], 1)
    reference = torch.stack([pairs["ref_chosen_logps"], pairs["ref_rejected_logps"]], 1)
    scores = torch.tensor([[1.0, 0.0]]).expand(2, 2)
    losses = nca_ranked_loss(ranked, reference, scores, beta=0.4, alpha=0.01).losses
    exact(losses, nca_loss(**pairs, beta=0.4).losses.tolist())


def test_at_the_optimum_rewards_are_the_log_of_k_times_the_target(ranked):
    target = (ranked["ranked_scores"] / 0.8).softmax(1)
    logps = ((3 * target).log() / 0.3).requires_grad_()
    fitted = {**ranked, "ranked_logps": logps}
    fitted["ref_ranked_logps"] = torch.zeros(2, 3, dtype=torch.float64)
    nca_ranked_loss(**fitted, beta=0.3, alpha=0.8).losses.sum().backward()
    torch.testing.assert_close(logps.grad, torch.zeros_like(logps), rtol=0, atol=1e-16)


def test_a_common_shift_of_the_log_ratios_counts(ranked):
    shifted = {**ranked, "ref_ranked_logps": ranked["ref_ranked_logps"] - 3}
    change = nca_ranked_loss(**shifted).losses - nca_ranked_loss(**ranked).losses
    assert (change.abs() > 1e-4).all()


@pytest.mark.parametrize("count", [2, 4, 9])
def test_policy_equal_to_reference_costs_two_ln_2(count, exact):
    logps = torch.linspace(-9, -2, count, dtype=torch.float64)[None]
    exact(nca_ranked_loss(logps, logps, -logps).losses, [2 * math.log(2)])


@pytest.mark.parametrize("name", ["beta", "alpha"])
def test_hyperparameters_must_be_positive(ranked, name):
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        nca_ranked_loss(**ranked, **{name: 0.0})
