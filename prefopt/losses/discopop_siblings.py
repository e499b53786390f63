r"""Siblings of DiscoPOP: the other losses an LLM proposed in the same search, beta at 0.05.

In the search, beta was left out of whatever the LLM did to the margin besides the loss itself. The
paper puts it back: it divides the reward margin m by tau = 0.05 there, which changes nothing at
beta = 0.05 and keeps the shape of the loss at any other. In the formulas below,

.. math::
    m = \beta (\rho_c - \rho_r),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

Three of them look at the batch, which is every example of an optimiser step. In a batch of one, its
variance is taken to be 0. Gradients flow through the statistics, as in the authors' code.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from prefopt.losses.common import check_positive, exponential
from prefopt.losses.registry import LossOutput, register_loss

# Beta where the paper compares losses over it, and the tau that it puts into all of them.
_BETA = {"beta": (0.025, 1.0)}
_BETA_AND_TAU = {**_BETA, "tau": (0.05, 0.05)}


@register_loss("dbaql", family="searched", batch_dependent=True, published=_BETA_AND_TAU)
def dbaql_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> LossOutput:
    r"""DBAQL: logistic and exponential loss, blended by the variance of the batch.

    Source: Lu et al. 2024, arXiv:2406.08414, Eq. 9. Departures from it: the second term
    goes on along its tangent beyond exp(44.3) in float32 and exp(665.4) in float64.
    Use it when: you reproduce the paper.
    Not when: the optimiser step holds few pairs: their variance decides the shape.
    Differs from: none: the same in the authors' code, where tau is fixed at 0.05.

    .. math::
        \ell = c \log(1 + e^{-m / 0.9}) + (1 - c) \, e^{-0.9 m},
        \quad c = \sigma\bigl(\mathrm{Var}[m / \tau]\bigr)

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        tau: Scale of the reward margin inside the variance; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``tau`` is not greater than 0.
    """
    check_positive(beta=beta, tau=tau)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    variance = _spread(margins / tau) ** 2
    # 1 - c is lost in rounding from a variance of 17 on, and then multiplies an exponential.
    exponential_part = exponential(-0.9 * margins + logsigmoid(-variance))
    losses = -torch.sigmoid(variance) * logsigmoid(margins / 0.9) + exponential_part
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("aql", family="searched", batch_dependent=True, published=_BETA_AND_TAU)
def aql_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
    blend_temperature: float = 1.0,
) -> LossOutput:
    r"""AQL: logistic and hinge loss, blended by the distance from a quantile of the batch.

    Source: Lu et al. 2024, arXiv:2406.08414, Eq. 11 to 14. Departures from it: the sigmoid is taken
    of the mean, as in the code the paper lists, where Eq. 13 has the mean of sigmoids.
    Use it when: you reproduce the paper.
    Not when: results must not depend on the batch size.
    Differs from: the authors' trainer differs from their paper in T, which it sets to tau: the same
    loss at ``blend_temperature=0.05``.

    .. math::
        \ell = q \log(1 + e^{-m}) + (1 - q) \max(0, 1 - m),
        \quad q = \sigma\Bigl(\frac{\tau a - m}{T}\Bigr),
        \quad a = 0.5 + 0.01 \bigl(\sigma(\mathrm{E}[m / \tau]) - 0.5\bigr)

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        tau: Scale of the reward margin beside the quantile; greater than 0.
        blend_temperature: The T above, in units of the reward margin; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If a hyper-parameter is not greater than 0.
    """
    check_positive(beta=beta, tau=tau, blend_temperature=blend_temperature)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    quantile = 0.5 + 0.01 * (torch.sigmoid((margins / tau).mean()) - 0.5)
    losses = _logistic_or_hinge(margins, (tau * quantile - margins) / blend_temperature)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("padll", family="searched", published=_BETA)
def padll_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
) -> LossOutput:
    r"""PADLL: the logistic loss, halved for pairs that the policy ranks the wrong way round.

    Source: Lu et al. 2024, arXiv:2406.08414, Eq. 15 to 18. Departures from it: none.
    Use it when: pairs that the policy ranks wrong are probably mislabelled: they count half.
    Not when: those are the very pairs to learn from.
    Differs from: none: the same in the authors' code, which rounds its factors to float32.

    .. math::
        \ell = 0.9 \, \bigl(1 - \tfrac{1}{2} [m < 0]\bigr) \log(1 + e^{-m})

    It jumps at a margin of 0, from 0.45 log 2 to 0.9 log 2.

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
    margins = chosen_rewards - rejected_rewards
    logistic = -logsigmoid(margins)
    losses = torch.where(margins < 0, 0.45 * logistic, 0.9 * logistic)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("aqfl", family="searched", batch_dependent=True, published=_BETA_AND_TAU)
def aqfl_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> LossOutput:
    r"""AQFL: logistic and hinge loss, blended by how far a pair lies from the batch.

    Source: Lu et al. 2024, arXiv:2406.08414, Eq. 20 to 25. Departures from it: the standard
    deviation S, as in the code the paper lists and in the authors' trainer, where Eq. 24 has the
    variance; and their bracket in the update of a, where Eq. 23 has it inside the sigmoid.
    Use it when: you reproduce the paper.
    Not when: results must not depend on the batch size.
    Differs from: the paper's printed formulas differ in two places; the authors' trainer is the
    same.

    .. math::
        \ell = b \log(1 + e^{-m}) + (1 - b) \max(0, 1 - m),
        \quad b = \sigma(0.1 \, |m / \tau - a|), \\
        a = a_0 + 0.05 \bigl(\sigma(\mathrm{E}[m / \tau]) - a_0\bigr),
        \quad a_0 = \mathrm{S}[m / \tau] \, \mathrm{E}[\sigma(-m / \tau)]

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        tau: Scale of the reward margin inside the statistics; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``tau`` is not greater than 0.
    """
    check_positive(beta=beta, tau=tau)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    scaled = margins / tau
    quantile = _spread(scaled) * torch.sigmoid(-scaled).mean()
    quantile = quantile + 0.05 * (torch.sigmoid(scaled.mean()) - quantile)
    losses = _logistic_or_hinge(margins, 0.1 * (scaled - quantile).abs())
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("cell", family="searched", published=_BETA)
def cell_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
) -> LossOutput:
    r"""CELL: the mean of the logistic and the exponential loss.

    Source: Lu et al. 2024, arXiv:2406.08414, Eq. 26. Departures from it: the exponential goes on
    along its tangent beyond exp(44.3) in float32 and exp(665.4) in float64.
    Use it when: wrong pairs should be corrected more strongly than by DPO.
    Not when: labels are noisy: the exponential makes pairs with a wrong label dominate.
    Differs from: none: the same in the authors' code.

    .. math::
        \ell = \tfrac{1}{2} \log(1 + e^{-m}) + \tfrac{1}{2} e^{-m}

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
    margins = chosen_rewards - rejected_rewards
    losses = (exponential(-margins) - logsigmoid(margins)) / 2
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("pfl", family="searched", published=_BETA_AND_TAU)
def pfl_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> LossOutput:
    r"""PFL: half the logistic loss where the policy alone prefers the chosen, else twice the hinge.

    Source: Lu et al. 2024, arXiv:2406.08414, Eq. 29. Departures from it: none.
    Use it when: pairs that the policy itself ranks wrong should get most of the gradient.
    Not when: the reference should help decide which pairs those are: it plays no part there.
    Differs from: the authors' trainer leaves tau out: the same loss at ``tau=1.0``.

    .. math::
        \ell = \begin{cases}
            \tfrac{1}{2} \log(1 + e^{-m / \tau}) & \log \pi(y_c \mid x) > \log \pi(y_r \mid x) \\
            2 \max(0, 1 - m / \tau) & \text{otherwise}
        \end{cases}

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        tau: Scale of the reward margin; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``tau`` is not greater than 0.
    """
    check_positive(beta=beta, tau=tau)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = (chosen_rewards - rejected_rewards) / tau
    losses = torch.where(
        chosen_logps > rejected_logps, -logsigmoid(margins) / 2, 2 * relu(1 - margins)
    )
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


def _spread(values: Tensor) -> Tensor:
    """Return the standard deviation of a batch, with B - 1 in the denominator; 0 for one value."""
    return values.std() if values.numel() > 1 else torch.zeros_like(values).sum()


def _logistic_or_hinge(margins: Tensor, blend: Tensor) -> Tensor:
    """Return the logistic loss times sigmoid(blend), plus the hinge loss times the rest."""
    return torch.sigmoid(-blend) * relu(1 - margins) - torch.sigmoid(blend) * logsigmoid(margins)
