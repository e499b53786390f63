r"""DPO: logistic loss on how much more the policy prefers the chosen completion.

Source: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; label smoothing as in Mitchell's note on
conservative DPO (cDPO), ericmitchell.ai/cdpo.pdf, Eq. 3. Departures from it: none.
Use it when: nothing speaks for another loss: it is the best understood, and the usual baseline.
Not when: labels are deterministic and training is long: margins grow without bound.
Differs from: none in value: agrees to 1e-12 with the authors' code, TRL, HALOs, torchtune,
OpenRLHF, Liger and others where they compute the same thing.
Differs from: TRL 1.16 and Liger ignore ``label_smoothing`` in their sigmoid loss, without a
warning; TRL up to 0.28, torchtune, OpenRLHF and HALOs compute cDPO as here.
Differs from: LLaMA-Factory with TRL 0.20 or newer runs this loss whatever its ``pref_loss`` says,
``ipo`` and ``hinge`` included.

.. math::
    \ell = -(1 - \epsilon) \log \sigma(m) - \epsilon \log \sigma(-m),
    \quad m = \beta (\rho_c - \rho_r),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The paper takes beta 0.1, 0.5 for summaries, and 0.05 to 5 where it compares them.
"""

from torch import Tensor

from prefopt.losses.common import check_label_smoothing, check_positive, smoothed_logistic
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("dpo", family="margin", aliases=["sigmoid"], published={"beta": (0.05, 5.0)})
def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """Return the DPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        label_smoothing: Probability that a label is flipped (cDPO); at least 0, below 0.5.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is out of its range.
    """
    check_positive(beta=beta)
    check_label_smoothing(label_smoothing)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    losses = smoothed_logistic(margins, label_smoothing)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
