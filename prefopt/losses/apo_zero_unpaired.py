r"""APO-zero on unpaired data: raises desirable completions and lowers the others, around zero.

Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, APO-zero, each half of the pair on its own, as
in TRL's KTOTrainer. Departures from it: the weights of the two labels are those of KTO, 1 in the
paper.
Use it when: desirable completions are better than what the policy writes, and the cost of
scoring mismatched completions is too high.
Not when: completions of both labels are worse than what the policy writes.
Differs from: none: the same in TRL's KTOTrainer.

.. math::
    \ell = \begin{cases}
        \lambda_D \, \sigma(-\beta \rho_y) & y \text{ desirable} \\
        \lambda_U \, \sigma(\beta \rho_y) & y \text{ undesirable}
    \end{cases}
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

This is ``kto`` with its reference point at 0, so that no mismatched completions are scored. On the
completions of a pair the two losses sum to that of ``apo_zero``; the default of beta is the same.
"""

import torch
from torch import Tensor

from prefopt.losses.common import check_not_negative, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("apo_zero_unpaired", family="unpaired")
def apo_zero_unpaired_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """Return the APO-zero loss of each completion, unreduced.

    Args:
        logps: Policy log-prob of the completion, summed over tokens; (B,), nats.
        ref_logps: Reference counterpart of ``logps``; (B,), nats.
        desirable: Whether the completion is desirable; (B,), bool.
        beta: Reward per nat of log-ratio; greater than 0.
        desirable_weight: Weight of the desirable completions; at least 0.
        undesirable_weight: Weight of the undesirable completions; at least 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If a hyper-parameter is out of its range.
    """
    check_positive(beta=beta)
    check_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    rewards = beta * (logps - ref_logps)
    losses = torch.where(
        desirable.bool(),
        desirable_weight * torch.sigmoid(-rewards),
        undesirable_weight * torch.sigmoid(rewards),
    )
    return LossOutput(losses, rewards=rewards.detach())
