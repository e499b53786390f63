r"""DiscoPOP: logistic and exponential loss, blended by the reward margin; found by an LLM.

Source: Lu et al. 2024, arXiv:2406.08414, Eq. 5 (the loss called LRML). Departures from it: none.
Use it when: you want the loss that a language model's search found best on held-out tasks.
Not when: a convex loss is needed: near 0 it pushes margins the wrong way.
Differs from: none in formula: the same in the authors' code (``lrml``, tau fixed at 0.05), TRL and
Liger (``discopop_tau``).
Differs from: TRL is NaN in float32 from a reward margin of about -89 on; here it is finite.

.. math::
    \ell = -\bigl(1 - \sigma(m / \tau)\bigr) \log \sigma(m) + \sigma(m / \tau) \, e^{-m},
    \quad m = \beta (\rho_c - \rho_r),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The ``_old`` variant of the authors' code, which leaves beta out of the blend, is another loss.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss(
    "discopop",
    family="searched",
    aliases=["lrml"],
    published={"beta": (0.025, 1.0), "tau": (0.05, 0.05)},
)
def discopop_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> LossOutput:
    """Return the DiscoPOP loss of each pair, unreduced.

    Finite at any margin for ``tau`` up to 1. Above, the loss itself grows exponentially in
    (1 - 1/tau) times a negative margin, and float32 holds it up to an exponent of 88.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        tau: Temperature of the blend, in units of the reward margin; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``tau`` is not greater than 0.
    """
    check_positive(beta=beta, tau=tau)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    logistic = -torch.sigmoid(-margins / tau) * logsigmoid(margins)
    # sigmoid(m / tau) * exp(-m), which is 0 * inf in float32 from a margin of -89 on.
    exponential = torch.exp(logsigmoid(margins / tau) - margins)
    losses = logistic + exponential
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
