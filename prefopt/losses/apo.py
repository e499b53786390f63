r"""APO: anchored losses, which say where the chosen log-prob should go, not only the difference.

Both are bounded by 0 and 2, and flat far from 0: pairs that are far on either side have no
gradient.
"""

import torch
from torch import Tensor

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("apo_zero", family="anchored", published={"beta": (0.1, 0.1)})
def apo_zero_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    r"""APO-zero: raise the chosen and lower the rejected completion, each against the reference.

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266 (APO-zero). Departures from it: 1 is added,
    as in TRL, so that the loss is not negative; gradients are the paper's.
    Use it when: chosen completions are better than what the policy writes.
    Not when: they are worse: it makes them more likely all the same.
    Differs from: none: the same in TRL and Liger.

    .. math::
        \ell = 1 - \sigma(\beta \rho_c) + \sigma(\beta \rho_r),
        \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    # 1 - sigmoid(r) is sigmoid(-r), without the cancellation.
    losses = torch.sigmoid(-chosen_rewards) + torch.sigmoid(rejected_rewards)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("apo_down", family="anchored", published={"beta": (0.1, 0.1)})
def apo_down_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    r"""APO-down: lower both completions, the rejected one more.

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266 (APO-down). Departures from it: 1 is added,
    as in TRL, so that the loss is not negative; gradients are the paper's.
    Use it when: the policy already writes better than the chosen completions.
    Not when: chosen completions should be imitated: it makes them less likely.
    Differs from: none: the same in TRL and Liger.

    .. math::
        \ell = \sigma(\beta \rho_c) + 1 - \sigma\bigl(\beta (\rho_c - \rho_r)\bigr),
        \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    losses = torch.sigmoid(chosen_rewards) + torch.sigmoid(rejected_rewards - chosen_rewards)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
