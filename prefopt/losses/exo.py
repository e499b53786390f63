r"""EXO: reverse KL from the policy's preference to a smoothed label, which seeks a mode.

Source: Ji et al. 2024, arXiv:2402.00856, EXO on preference pairs (K = 2). Departures from it: none.
Use it when: a policy of limited capacity should pick one good mode rather than cover all.
Not when: the policy starts far on the wrong side: the slope vanishes there.
Differs from: none in formula: the same in TRL and Liger. TRL 1.16 raises for ``label_smoothing=0``,
TRL up to 0.28 silently takes 1e-3; all of them compute logarithms of the smoothing in float32.
Differs from: the authors' code takes (0, -10) for the two target log-probs, whose probabilities do
not sum to one: its loss is this one at epsilon = exp(-10), plus log(1 - epsilon) sigma(m), at most
4.6e-5 apart.

.. math::
    \ell = \sigma(m) \log \frac{\sigma(m)}{1 - \epsilon}
        + \sigma(-m) \log \frac{\sigma(-m)}{\epsilon},
    \quad m = \beta (\rho_c - \rho_r),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

DPO is the forward KL of the same two distributions, with a hard label. The loss is 0 at a margin of
log((1 - epsilon) / epsilon) and positive on both sides of it: as the margin grows it tends to
-log(1 - epsilon), and as it falls to -log(epsilon), so pairs far on the wrong side have no
gradient.

The authors' scripts have beta 0.1 on IMDB, 0.5 on HH and TL;DR; the default of epsilon is that of
TRL up to 0.28.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("exo", family="margin", aliases=["exo_pair"], published={"beta": (0.1, 0.5)})
def exo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.001,
) -> LossOutput:
    """Return the EXO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio, the paper's beta_pi; greater than 0.
        label_smoothing: Probability that a label is flipped; greater than 0, since the loss of a
            hard label is infinite, and below 0.5.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is out of its range.
    """
    check_positive(beta=beta)
    if not 0 < label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be above 0 and below 0.5, got {label_smoothing}")
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    agrees = torch.sigmoid(margins) * (logsigmoid(margins) - math.log1p(-label_smoothing))
    differs = torch.sigmoid(-margins) * (logsigmoid(-margins) - math.log(label_smoothing))
    losses = agrees + differs
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
