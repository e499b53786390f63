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
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["FrontierPoint", "reward_frontier"]


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
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards must be (prompts, samples), got {tuple(rewards.shape)}")
    if any(beta <= 0 for beta in betas):
        raise ValueError(f"every beta must be greater than 0, got {list(betas)}")
    rewards = rewards.double()
    points = []
    for beta in [math.inf, *sorted(betas, reverse=True)]:
        log_weights = (rewards / beta).log_softmax(dim=1)
        weights = log_weights.exp()
        effective_samples = (1 / weights.square().sum(dim=1)).min().item()
        if effective_samples < min_effective_samples:
            break
        reward = (weights * rewards).sum(dim=1).mean().item()
        kl = (weights * log_weights).sum(dim=1).mean().item() + math.log(rewards.shape[1])
        points.append(FrontierPoint(beta, reward, max(0.0, kl), effective_samples))
    return points
