"""The frontier, against the closed form on a small discrete world."""

import math

import pytest
import torch

from prefopt.evaluation import reward_frontier


def closed_form(
    probabilities: list[float], rewards: list[float], beta: float
) -> tuple[float, float]:
    """Return reward and KL of pi* proportional to pi exp(r / beta), by summing over outcomes."""
    weights = [p * math.exp(r / beta) for p, r in zip(probabilities, rewards, strict=True)]
    optimum = [weight / sum(weights) for weight in weights]
    reward = sum(p * r for p, r in zip(optimum, rewards, strict=True))
    kl = sum(p * math.log(p / q) for p, q in zip(optimum, probabilities, strict=True))
    return reward, kl


def test_samples_in_exact_proportion_give_the_closed_form():
    # 1000 "samples" whose frequencies are the probabilities make the estimate exact.
    rewards = torch.tensor([[-1.0] * 500 + [0.5] * 300 + [2.0] * 200] * 2)
    points = reward_frontier(rewards, [2.0, 0.7, 0.3], min_effective_samples=1)
    assert [point.beta for point in points] == [math.inf, 2.0, 0.7, 0.3]
    assert points[0].kl == pytest.approx(0.0, abs=1e-9)
    assert points[0].reward == pytest.approx(0.5 * -1 + 0.3 * 0.5 + 0.2 * 2)
    for point in points[1:]:
        reward, kl = closed_form([0.5, 0.3, 0.2], [-1.0, 0.5, 2.0], point.beta)
        assert point.reward == pytest.approx(reward, rel=1e-9)
        assert point.kl == pytest.approx(kl, rel=1e-9)


def test_random_samples_come_near_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([-2.0, 0.0, 1.0, 3.0])
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    picks = torch.multinomial(probabilities, 4 * 20_000, replacement=True, generator=generator)
    points = reward_frontier(values[picks].view(4, -1), [3.0, 1.5, 1.0])
    for point in points[1:]:
        reward, kl = closed_form(probabilities.tolist(), values.tolist(), point.beta)
        assert point.reward == pytest.approx(reward, abs=0.02)
        assert point.kl == pytest.approx(kl, abs=0.01)


def test_each_prompt_keeps_its_own_optimum():
    # A prompt whose rewards are all high must not draw weight from one whose rewards are low.
    low = torch.tensor([[0.0, 1.0]]).repeat(1, 100)
    together = reward_frontier(torch.cat([low, low + 10.0]), [1.0], min_effective_samples=1)[1]
    alone = reward_frontier(low, [1.0], min_effective_samples=1)[1]
    assert together.reward == pytest.approx(alone.reward + 5.0)
    assert together.kl == pytest.approx(alone.kl)


def test_the_curve_stops_where_too_few_samples_carry_it():
    rewards = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    points = reward_frontier(rewards, [4.0, 2.0, 1.0, 0.5, 0.1, 0.05])
    assert 1 < len(points) < 7
    assert all(point.effective_samples >= 50 for point in points)
    assert [point.kl for point in points] == sorted(point.kl for point in points)
    assert [point.reward for point in points] == sorted(point.reward for point in points)


def test_wrong_input_is_an_error():
    with pytest.raises(ValueError, match=r"\(prompts, samples\)"):
        reward_frontier(torch.zeros(3), [1.0])
    with pytest.raises(ValueError, match="greater than 0"):
        reward_frontier(torch.zeros(1, 3), [1.0, 0.0])
