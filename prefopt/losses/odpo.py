r"""ODPO: DPO whose reward margin must exceed an offset, larger the better the chosen completion is.

Source: Amini et al. 2024, arXiv:2402.10571 (DPO with an offset). Departures from it: where the
margin of the data is 0 or negative, and its logarithm no number, the loss is 0, its limit.
Use it when: scores say how much better the chosen completion is.
Not when: scores of different prompts are on different scales.

.. math::
    \ell = -\log \sigma\bigl(\beta (\rho_c - \rho_r) - \Delta\bigr),
    \quad \Delta = \alpha \log g \text{ (log) or } \alpha g \text{ (identity)},
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

g is the margin of the data, on its own scale: a column of margins, or the difference of scores. The
default of alpha is that of the authors' configuration, that of beta is that of ``dpo``: their
commands set beta to 0.05 for toxicity, 0.5 for summaries, and 0.7 with alpha at 0.5 for sentiment.
"""

import torch
from torch import Tensor

from prefopt.losses.common import (
    check_choice,
    check_not_negative,
    check_positive,
    require_margin,
)
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("odpo", family="data")
def odpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    margins: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    scale: str = "log",
) -> LossOutput:
    """Return the DPO loss with an offset of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        margins: By how much the chosen completion is better, on the data's own scale; (B,).
        beta: Reward per nat of log-ratio; greater than 0.
        alpha: Reward per unit of scaled margin; at least 0, where the loss is DPO.
        scale: ``"log"`` takes the logarithm of the margins, ``"identity"`` takes them as they are.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``alpha`` is out of its range or ``scale`` is neither word.
    """
    check_positive(beta=beta)
    check_not_negative(alpha=alpha)
    check_choice("scale", scale, ("log", "identity"))
    if scale == "log":  # margins without a logarithm: see below
        offsets = alpha * torch.where(margins > 0, margins, 1).log()
    else:
        offsets = alpha * margins
    ref_chosen_logps = require_margin(ref_chosen_logps, offsets, beta)
    output = dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    if scale == "log" and alpha > 0:  # the limit of an offset that goes to minus infinity
        output = output._replace(losses=torch.where(margins > 0, output.losses, 0))
    return output.add_to_chosen(offsets)
