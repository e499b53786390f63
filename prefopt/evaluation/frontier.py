"""The best reward that any policy can reach at each distance from the reference.

Among all policies with a given KL from the reference, the mean reward is highest for

    pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x)

(the optimum of reward minus beta x KL; Rafailov et al. 2023, arXiv:2305.18290, Eq. 4). Given M
samples of the reference for a prompt, its reward and KL are estimated with self-normalised weights
``w_i = exp(r_i / beta) / sum_j exp(r_j / beta)``:

    reward = sum_i w_i r_i          KL = sum_i w_i log w_i + log M

Both are averaged over prompts at the same beta, as is right where the average KL is what counts.
The estimates hold while many samples share the weight: their effective number is
``1 / sum_i w_i^2``, and the curve stops where that gets small (KL can never exceed log M).

The best reward at one KL k is found by the dual problem: for every beta > 0,

    reward of any policy  <=  beta log E_ref[exp(r / beta)]  +  beta k      (mean over prompts)

with equality at the beta whose optimal policy has KL k. So the smallest right-hand side is the best
reward, and an error in beta moves it in second order only. That makes a bootstrap cheap: samples
are drawn again, beta stays.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.evaluation.intervals import Estimate

__all__ = ["FrontierPoint", "best_reward", "frontier_at", "gain_share", "reward_frontier"]

_BISECTIONS = 60  # halvings of log beta: far below rounding
_BETA_RANGE = (1e-3, 1e4)  # in standard deviations of the reward


class FrontierPoint(NamedTuple):
    """The optimal policy at one beta.

    Attributes:
        beta: Price of a nat of KL, in units of the reward; infinity is the reference itself.
        reward: Its mean reward.
        kl: Its KL from the reference, in nats.
        effective_samples: Smallest effective number of samples of any prompt.
    """

    beta: float
    reward: float
    kl: float
    effective_samples: float


def reward_frontier(
    rewards: Tensor, betas: Sequence[float], *, min_effective_samples: float = 50.0
) -> list[FrontierPoint]:
    """Estimate the frontier from rewards of the reference's own samples.

    Args:
        rewards: Rewards of M samples of the reference for each of P prompts; (P, M).
        betas: Prices of KL to evaluate, in units of the reward, each greater than 0.
        min_effective_samples: Where a prompt falls below it, the curve ends.

    Returns:
        Points by growing KL, the reference first; those with too few effective samples left out.

    Raises:
        ValueError: If the rewards are not (P, M), or a beta is not greater than 0.

    >>> import torch
    >>> rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    >>> for point in reward_frontier(rewards, [0.5], min_effective_samples=1):
    ...     print(f"{point.kl:.3f} {point.reward:.3f} {point.effective_samples:.2f}")
    0.000 0.250 4.00
    0.468 0.711 1.87
    """
    rewards = _checked(rewards)
    if any(beta <= 0 for beta in betas):
        raise ValueError(f"every beta must be greater than 0, got {list(betas)}")
    points = []
    for beta in [math.inf, *sorted(betas, reverse=True)]:
        point = _optimum(rewards, beta)
        if point.effective_samples < min_effective_samples:
            break
        points.append(point)
    return points


def frontier_at(rewards: Tensor, kl: float) -> FrontierPoint:
    """Estimate the best policy among those with this KL from the reference.

    Args:
        rewards: Rewards of M samples of the reference for each of P prompts; (P, M).
        kl: Mean KL over prompts, in nats; greater than 0.

    Returns:
        The point of the frontier at this KL. Its ``effective_samples`` tell whether the samples can
        carry it: with 25 or fewer they cannot.

    Raises:
        ValueError: If the rewards are not (P, M), or no weights of these samples have this KL.

    >>> import torch
    >>> point = frontier_at(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), 0.468)
    >>> print(f"{point.beta:.2f} {point.reward:.2f}")
    0.50 0.71
    """
    rewards = _checked(rewards)
    scale = rewards.std(dim=1).mean().item()
    low, high = (scale * end for end in _BETA_RANGE)
    if not (scale > 0 and 0 < kl <= _optimum(rewards, low).kl):
        raise ValueError(f"no weights of these samples have a KL of {kl:.4g} nats")
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _optimum(rewards, middle).kl > kl else (low, middle)
    return _optimum(rewards, high)


def best_reward(
    rewards: Tensor, kl: float, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the best reward at this KL, with a bootstrap interval over the samples.

    Args:
        rewards: Rewards of M samples of the reference for each of P prompts; (P, M).
        kl: Mean KL over prompts, in nats; greater than 0.
        confidence: Coverage, between 0 and 1.
        resamples: Number of bootstrap resamples.
        seed: Of the resampling.

    Raises:
        ValueError: As in :func:`frontier_at`.
    """
    point = frontier_at(rewards, kl)
    rewards = rewards.double()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.empty(resamples, dtype=torch.float64)
    for index in range(resamples):
        picks = torch.randint(rewards.shape[1], rewards.shape, generator=generator)
        draws[index] = _dual(rewards.gather(1, picks), point.beta) + point.beta * kl
    return _percentiles(point.reward, draws, confidence, rewards.numel())


def gain_share(
    reference_rewards: Tensor,
    policy_rewards: Tensor,
    policy_kls: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Estimate which share of the best reward gain at its KL a policy has.

    A gain is a mean reward minus the reference's. The interval is a bootstrap over the samples of
    both models; prompts are taken as given.

    Args:
        reference_rewards: Rewards of M samples of the reference for each of P prompts; (P, M).
        policy_rewards: Rewards of N samples of the policy for each of them; (P, N).
        policy_kls: Estimates of the KL from the same samples, as ``sequence_kl`` returns
            them; (P, N), nats.
        confidence: Coverage, between 0 and 1.
        resamples: Number of bootstrap resamples.
        seed: Of the resampling.

    Returns:
        1 for the optimum, 0 for no gain, below 0 for a policy that is worse than the reference.

    Raises:
        ValueError: If shapes do not fit, or as in :func:`frontier_at`.
    """
    reference, policy, kls = map(_checked, (reference_rewards, policy_rewards, policy_kls))
    if policy.shape != kls.shape or len(policy) != len(reference):
        shapes = [tuple(x.shape) for x in (reference, policy, kls)]
        raise ValueError(f"shapes must be (P, M), (P, N) and (P, N), got {shapes}")
    beta = frontier_at(reference, kls.mean().item()).beta
    generator = torch.Generator().manual_seed(seed)
    draws = torch.empty(resamples, dtype=torch.float64)
    for index in range(resamples):
        picks = torch.randint(reference.shape[1], reference.shape, generator=generator)
        own = torch.randint(policy.shape[1], policy.shape, generator=generator)
        again = (reference.gather(1, picks), policy.gather(1, own), kls.gather(1, own))
        draws[index] = _share(*again, beta)
    share = _share(reference, policy, kls, beta)
    return _percentiles(share, draws, confidence, policy.numel())


def _share(reference: Tensor, policy: Tensor, kls: Tensor, beta: float) -> float:
    start = reference.mean().item()
    best = _dual(reference, beta) + beta * kls.mean().item()
    return (policy.mean().item() - start) / (best - start)


def _dual(rewards: Tensor, beta: float) -> float:
    """Return ``beta log E_ref[exp(r / beta)]``, the mean over prompts."""
    log_means = (rewards / beta).logsumexp(dim=1) - math.log(rewards.shape[1])
    return beta * log_means.mean().item()


def _optimum(rewards: Tensor, beta: float) -> FrontierPoint:
    log_weights = (rewards / beta).log_softmax(dim=1)
    weights = log_weights.exp()
    effective_samples = (1 / weights.square().sum(dim=1)).min().item()
    reward = (weights * rewards).sum(dim=1).mean().item()
    kl = (weights * log_weights).sum(dim=1).mean().item() + math.log(rewards.shape[1])
    return FrontierPoint(beta, reward, max(0.0, kl), effective_samples)


def _percentiles(value: float, draws: Tensor, confidence: float, size: int) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = draws.quantile(torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Estimate(value, low, high, size)


def _checked(values: Tensor) -> Tensor:
    if values.dim() != 2 or values.numel() == 0:
        raise ValueError(f"rewards must be (prompts, samples), got {tuple(values.shape)}")
    return values.detach().double()
