"""The frontier, against the closed form on a small discrete world."""

import math

import pytest
import torch

from prefopt.evaluation import best_reward, frontier_at, gain_share, reward_frontier


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


def normal_rewards(prompts: int = 1, samples: int = 40_001) -> torch.Tensor:
    """Return the quantiles of a normal of mean 1 and deviation 2: samples without noise."""
    levels = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    return (1 + 2 * torch.special.ndtri(levels)).repeat(prompts, 1)


@pytest.mark.parametrize("kl", [0.1, 0.5, 1.0])
def test_the_frontier_of_normal_rewards_is_known(kl):
    # exp(r / beta) moves N(m, s) to N(m + s^2 / beta, s), whose KL is s^2 / (2 beta^2).
    point = frontier_at(normal_rewards(prompts=3), kl)
    assert point.beta == pytest.approx(2 / math.sqrt(2 * kl), rel=2e-3)
    assert point.reward == pytest.approx(1 + 2 * math.sqrt(2 * kl), rel=2e-3)
    assert point.kl == pytest.approx(kl, rel=1e-9)


def test_the_interval_of_the_best_reward_holds_what_the_delta_method_says():
    generator = torch.Generator().manual_seed(1)
    rewards = 1 + 2 * torch.randn(4, 2000, generator=generator)
    estimate = best_reward(rewards, 0.5)
    # log-mean of exp(z) over M samples: variance (e - 1) / M; beta = s at KL 0.5, 4 prompts.
    error = 2 * math.sqrt((math.e - 1) / (4 * 2000))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert estimate.low < 3.0 < estimate.high
    assert estimate.value == pytest.approx(frontier_at(rewards, 0.5).reward)


def test_the_share_of_a_policy_between_start_and_optimum():
    reference = normal_rewards(prompts=2)
    generator = torch.Generator().manual_seed(2)
    # At KL 0.5 the optimum gains 2; this policy gains 1.
    rewards = 2 + torch.randn(2, 3000, generator=generator)
    kls = 0.5 + 0.1 * torch.randn(2, 3000, generator=generator)
    share = gain_share(reference, rewards, kls, resamples=200)
    assert share.value == pytest.approx(0.5, abs=0.03)
    # The rewards' error is 1 / sqrt(6000), over a gain of 2; other errors are smaller.
    assert share.high - share.low == pytest.approx(2 * 1.96 / math.sqrt(6000) / 2, rel=0.3)
    assert share.size == 6000


def test_a_share_needs_a_kl_that_the_samples_reach():
    reference = torch.tensor([[0.0, 0.0, 0.0, 1.0]])  # at most log 4
    policy, kls = torch.ones(1, 2), torch.full((1, 2), 1.5)
    with pytest.raises(ValueError, match=r"KL of 1\.5 nats"):
        gain_share(reference, policy, kls)
    with pytest.raises(ValueError, match="KL of 0 nats"):
        gain_share(reference, policy, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="KL of 1 nats"):
        frontier_at(torch.ones(1, 4), 1.0)
    with pytest.raises(ValueError, match="shapes must be"):
        gain_share(reference, torch.ones(2, 2), torch.ones(2, 2))
