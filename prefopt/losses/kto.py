r"""KTO: prospect-theoretic value of unpaired completions, each desirable or undesirable.

Source: Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 7. Departures from it: none.
Use it when: data is unpaired, with a label each, even if one label is far more frequent.
Not when: batches are tiny and completions long: the reference point is estimated from a batch.
Differs from: none in value: the same to 1e-9 in TRL, OpenRLHF, Liger and HALOs (4831988), given the
same estimate of the KL divergence. HALOs divides that estimate by the number of nonzero log-ratios.
Differs from: TRL estimates it per device, and can pair a row with its own completion; here the
mismatched completion is another row's by construction, and the estimate is taken over the
optimiser step.
Differs from: ``kto_pair`` of HALOs (2023), OpenRLHF and DiscoPOP is another loss: the reference
point is the other half of the batch and carries gradient.

.. math::
    \ell = \begin{cases}
        \lambda_D \, \sigma\bigl(\beta (z - \rho_y)\bigr) & y \text{ desirable} \\
        \lambda_U \, \sigma\bigl(\beta (\rho_y - z)\bigr) & y \text{ undesirable}
    \end{cases}
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)},
    \quad z = \max(0, \mathrm{kl})
"""

import torch
from torch import Tensor

from prefopt.losses.common import check_not_negative, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("kto", family="unpaired", published={"beta": (0.05, 0.5)})
def kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """Return the KTO loss of each completion, unreduced: weight minus weighted value.

    Args:
        logps: Policy log-prob of the completion, summed over tokens; (B,), nats.
        ref_logps: Reference counterpart of ``logps``; (B,), nats.
        desirable: Whether the completion is desirable; (B,), bool.
        kl: The reference point z: mean log-ratio of mismatched completions, before ``beta``; (),
            nats. No gradient flows through it, and a negative estimate counts as 0.
        beta: Reward per nat of log-ratio; greater than 0.
        desirable_weight: The paper's lambda_D; at least 0.
        undesirable_weight: The paper's lambda_U; at least 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If a hyper-parameter is out of its range.
    """
    check_positive(beta=beta)
    check_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    log_ratios = logps - ref_logps
    values = beta * (log_ratios - kl.detach().clamp(min=0))
    # 1 - sigmoid(v) is sigmoid(-v), without the cancellation.
    losses = torch.where(
        desirable.bool(),
        desirable_weight * torch.sigmoid(-values),
        undesirable_weight * torch.sigmoid(values),
    )
    return LossOutput(losses, rewards=beta * log_ratios.detach())
