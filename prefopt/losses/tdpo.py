r"""TDPO: DPO with a KL divergence at every token, so that the rejected completion does not drift.

Source: Zeng et al. 2024, arXiv:2404.11999 (TDPO2; TDPO1 is ``alpha=1.0, stop_gradient=False``).
Departures from it: none.
Use it when: the policy drifts, and its divergence at each token should be kept small.
Not when: a live reference does not fit in memory: cached log-probs are not enough.

.. math::
    \ell = -\log \sigma\Bigl(\beta \bigl[\rho_c - \rho_r
        - \alpha (D_r - \mathrm{sg}(D_c))\bigr]\Bigr),
    \quad D_y = \sum_t \mathrm{KL}\bigl(\pi_{\mathrm{ref}}(\cdot \mid x, y_{<t}) \,\|\,
        \pi(\cdot \mid x, y_{<t})\bigr),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

sg stops the gradient. The defaults are those of the authors' configuration.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_not_negative, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("tdpo", family="anchored", aliases=["tdpo2"])
def tdpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_divergences: Tensor,
    rejected_divergences: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    stop_gradient: bool = True,
) -> LossOutput:
    """Return the token-level DPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        chosen_divergences: KL(reference || policy) at each token of the chosen completion, summed
            over tokens; (B,), nats.
        rejected_divergences: The same of the rejected completion; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        alpha: Weight of the difference of divergences; at least 0, where the loss is DPO.
        stop_gradient: Whether the chosen completion's divergence is a constant.

    Returns:
        Losses, and as detached rewards ``beta`` times the log-ratio plus the divergence, as in the
        authors' code; each (B,).

    Raises:
        ValueError: If ``beta`` or ``alpha`` is out of its range.
    """
    check_positive(beta=beta)
    check_not_negative(alpha=alpha)
    chosen_log_ratios = chosen_logps - ref_chosen_logps
    rejected_log_ratios = rejected_logps - ref_rejected_logps
    anchor = chosen_divergences.detach() if stop_gradient else chosen_divergences
    drift = alpha * (rejected_divergences - anchor)
    losses = -logsigmoid(beta * (chosen_log_ratios - rejected_log_ratios - drift))
    return LossOutput(
        losses,
        beta * (chosen_log_ratios + chosen_divergences).detach(),
        beta * (rejected_log_ratios + rejected_divergences).detach(),
    )
