r"""AlphaPO: SimPO with a transformed reward, which changes how far both likelihoods may fall.

Source: Gupta et al. 2025, arXiv:2501.03884. Departures from it: where the power would leave the
range of the number format, the reward goes on along its tangent; in float32 and with alpha 0.25
that is below -177 nats per token.
Use it when: under ``simpo`` the likelihood of both completions falls too far, or not enough.
Not when: there is no time to tune alpha besides beta and gamma.
Differs from: TRL's CPOTrainer applies alpha to summed log-probs unless its loss type is ``simpo``
or ``ipo``, and overflows there; this is its ``simpo`` with ``cpo_alpha=0``.

.. math::
    \ell = -\log \sigma\bigl(\beta r(y_c) - \beta r(y_r) - \gamma\bigr),
    \quad r(y) = \frac{1 - p_y^{-\alpha}}{\alpha},
    \quad p_y = \pi(y \mid x)^{1 / |y|}

Alpha towards 0 gives ``simpo``. A positive alpha makes the reward of an unlikely completion
steeper, a negative one flatter.

The defaults of alpha and beta are the paper's for Mistral, as TRL's list of papers gives them. It
gives 0.1 for gamma: taken here for gamma divided by beta, as in SimPO's run on Mistral.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import average_logps, check_not_negative, check_positive, exponential
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("alphapo", family="no_reference")
def alphapo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.5,
    gamma: float = 0.25,
    alpha: float = 0.25,
) -> LossOutput:
    """Return the AlphaPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: Factor of the reward; greater than 0.
        gamma: Reward by which the chosen completion should be ahead; at least 0.
        alpha: How the reward is bent; finite. At 0 the reward is the mean log-prob.

    Returns:
        Losses and detached rewards (beta times r), each (B,).

    Raises:
        ValueError: If a hyper-parameter is out of its range.
    """
    check_positive(beta=beta)
    check_not_negative(gamma=gamma)
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    chosen_rewards = beta * _bend(average_logps(chosen_logps, chosen_lengths), alpha)
    rejected_rewards = beta * _bend(average_logps(rejected_logps, rejected_lengths), alpha)
    losses = -logsigmoid(chosen_rewards - rejected_rewards - gamma)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


def _bend(mean_logps: Tensor, alpha: float) -> Tensor:
    """Return (1 - exp(-alpha * mean_logps)) / alpha, and its limit where alpha is 0."""
    if alpha == 0:
        return mean_logps
    exponents = -alpha * mean_logps
    near = torch.expm1(exponents.clamp(max=1))  # exp(x) - 1 would lose its digits
    return -torch.where(exponents < 1, near, exponential(exponents) - 1) / alpha
