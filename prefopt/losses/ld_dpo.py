r"""LD-DPO: DPO in which the part of the longer completion beyond the shorter one counts less.

Source: Liu et al. 2024, arXiv:2409.06411 (LD-DPO). Departures from it: none known; implementations
disagree on the reference, see below.
Use it when: the tail of the longer completion should count, but less than the rest.
Not when: both completions are about equally long: it is then DPO.
Differs from: TRL 1.16 weighs down the tail of policy and reference, as here; LLaMA-Factory and TRL
up to 0.28 only the policy's, which is ``reference="full"``.

.. math::
    \ell = -\log \sigma\bigl(\beta (\hat\rho_c - \hat\rho_r)\bigr),
    \quad \hat\rho_y = \log \hat\pi(y \mid x) - \log \hat\pi_{\mathrm{ref}}(y \mid x), \\
    \log \hat\pi(y \mid x) = \log \pi(y_{\le n} \mid x)
        + \alpha \log \pi(y_{> n} \mid x, y_{\le n})

with n the length of the shorter completion. With ``reference="full"`` a policy equal to the
reference starts with a margin, in favour of the longer completion. The default of alpha is what the
paper suggests, according to TRL's list of papers.
"""

from torch import Tensor

from prefopt.losses.common import check_choice, head_and_tail
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("ld_dpo", family="data")
def ld_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_head_logps: Tensor,
    rejected_head_logps: Tensor,
    ref_chosen_head_logps: Tensor,
    ref_rejected_head_logps: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    reference: str = "alike",
) -> LossOutput:
    """Return the length-desensitised DPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        chosen_head_logps: Policy log-prob of as many tokens of the chosen completion as the shorter
            one has; (B,), nats.
        rejected_head_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_head_logps: Reference counterpart of ``chosen_head_logps``; (B,), nats.
        ref_rejected_head_logps: Reference counterpart of ``rejected_head_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        alpha: Weight of the tokens beyond the shorter length: from 0, where they do not count, to
            1, where the loss is DPO.
        reference: ``"alike"`` weighs the reference's tokens like the policy's, ``"full"`` counts
            all of them in full.

    Returns:
        Losses and detached rewards (beta times the weighted log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``alpha`` is out of its range or ``reference`` is neither word.
    """
    check_choice("reference", reference, ("alike", "full"))
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    reference_alpha = alpha if reference == "alike" else 1.0
    return dpo_loss(
        head_and_tail(chosen_logps, chosen_head_logps, alpha),
        head_and_tail(rejected_logps, rejected_head_logps, alpha),
        head_and_tail(ref_chosen_logps, ref_chosen_head_logps, reference_alpha),
        head_and_tail(ref_rejected_logps, ref_rejected_head_logps, reference_alpha),
        beta=beta,
    )
