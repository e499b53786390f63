r"""GPO: any convex surrogate of the sign of the margin; DPO, IPO and the RSO hinge are members.

Source: Tang et al. 2024, arXiv:2402.05749. Departures from it: the exponential goes on along its
tangent beyond exp(44.3) in float32 and exp(665.4) in float64.
Use it when: you want to compare shapes of loss with everything else equal.
Not when: ``f='exponential'`` and labels are noisy: pairs with a wrong label dominate.
Differs from: none: no other system has the family. The members that are losses of their own
elsewhere, ``dpo``, ``ipo`` and ``hinge``, are compared there.

.. math::
    \ell = f\bigl(\beta (\rho_c - \rho_r)\bigr),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}, \\
    f(m) = \begin{cases}
        \log(1 + e^{-m}) & \text{logistic} \\
        \max(0, 1 - m) & \text{hinge} \\
        (1 - m)^2 & \text{squared} \\
        e^{-m} & \text{exponential} \\
        \max(0, 1 - m)^2 & \text{truncated\_quadratic} \\
        (1 + e^m)^{-2} & \text{savage}
    \end{cases}

``logistic`` is ``dpo``, ``hinge`` is ``hinge``, and ``squared`` is beta^2 times ``ipo`` with
``normalize="sum"`` at half the beta. ``savage`` is bounded and not convex. The default of beta is
that of ``dpo``; which one is best differs from member to member.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from prefopt.losses.common import check_choice, check_positive, exponential
from prefopt.losses.registry import LossOutput, register_loss

_MEMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda margins: -logsigmoid(margins),
    "hinge": lambda margins: relu(1 - margins),
    "squared": lambda margins: (1 - margins) ** 2,
    "exponential": lambda margins: exponential(-margins),
    "truncated_quadratic": lambda margins: relu(1 - margins) ** 2,
    "savage": lambda margins: torch.sigmoid(-margins) ** 2,
}


@register_loss("gpo", family="margin")
def gpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    f: str = "logistic",
) -> LossOutput:
    """Return the GPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        f: The surrogate: ``"logistic"``, ``"hinge"``, ``"squared"``, ``"exponential"``,
            ``"truncated_quadratic"`` or ``"savage"``.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0 or ``f`` is none of these.
    """
    check_positive(beta=beta)
    check_choice("f", f, tuple(_MEMBERS))
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    losses = _MEMBERS[f](chosen_rewards - rejected_rewards)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
