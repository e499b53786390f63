r"""AOT: compares sorted batches, so that the chosen distribution dominates the rejected one.

A sorted loss belongs to no pair of the data. Here each is given to the example that holds its rank,
so that a batch in another order gives the same losses in that order. Their mean is the loss of the
paper; the loss of one example says little. With batches of one, both losses are ``dpo``.

The larger the set that is sorted, the better the estimate of the distributions: these losses see
all examples of an optimiser step at once. The default of beta is that of the paper's figure 2, a
tenth of TRL's.
"""

from torch import Tensor

from prefopt.losses.common import check_label_smoothing, check_positive, smoothed_logistic
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("aot", family="batch", aliases=["aot_pair"], batch_dependent=True)
def aot_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.01,
    label_smoothing: float = 0.0,
) -> LossOutput:
    r"""AOT: the policy's log-prob differences, sorted, beat those of the reference, sorted.

    Source: Melnyk et al. 2024, arXiv:2406.05882 (AOT, paired). Departures from it: only the
    logistic cost; label smoothing, as in TRL, is not in the paper.
    Use it when: the whole distribution of margins should improve, including its low end.
    Not when: the optimiser step holds few pairs: with one pair it is DPO.
    Differs from: TRL sorts each micro-batch of each device; here the whole optimiser step is
    sorted.
    Differs from: TRL returns losses in sorted order; here each is at the example that holds the
    rank.

    .. math::
        \ell_{(k)} = -(1 - \epsilon) \log \sigma(m_k) - \epsilon \log \sigma(-m_k),
        \quad m_k = \beta (d_{(k)} - d^{\mathrm{ref}}_{(k)}),
        \quad d = \log \frac{\pi(y_c \mid x)}{\pi(y_r \mid x)}

    where (k) is the rank within the batch.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Steepness of the cost, per nat; greater than 0.
        label_smoothing: Probability that a label is flipped; at least 0, below 0.5.

    Returns:
        Losses, each at the example whose policy difference holds the rank, and detached rewards
        (beta times log-ratio); each (B,).

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is out of its range.
    """
    sorted_policy, order = (chosen_logps - rejected_logps).sort(stable=True)
    sorted_reference = (ref_chosen_logps - ref_rejected_logps).sort().values
    losses = _sorted_losses(sorted_policy - sorted_reference, order, beta, label_smoothing)
    return LossOutput(
        losses,
        beta * (chosen_logps - ref_chosen_logps).detach(),
        beta * (rejected_logps - ref_rejected_logps).detach(),
    )


@register_loss("aot_unpaired", family="batch", batch_dependent=True)
def aot_unpaired_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.01,
    label_smoothing: float = 0.0,
) -> LossOutput:
    r"""AOT unpaired: log-ratios of chosen completions, sorted, beat those of rejected ones, sorted.

    Source: Melnyk et al. 2024, arXiv:2406.05882 (AOT, unpaired). Departures from it: it takes
    pairs, and so as many chosen as rejected completions, whose prompts need not be the same; only
    the logistic cost; label smoothing, as in TRL, is not in the paper.
    Use it when: chosen and rejected completions belong to different prompts.
    Not when: pairs are real and few: the pairing is not used.
    Differs from: TRL, in the two points of ``aot``.

    .. math::
        \ell_{(k)} = -(1 - \epsilon) \log \sigma(m_k) - \epsilon \log \sigma(-m_k),
        \quad m_k = \beta (\rho_{c(k)} - \rho_{r(k)}),
        \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

    where (k) is the rank within the batch, of chosen and of rejected completions separately.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Steepness of the cost, per nat; greater than 0.
        label_smoothing: Probability that a label is flipped; at least 0, below 0.5.

    Returns:
        Losses, each at the example whose chosen log-ratio holds the rank, and detached rewards
        (beta times log-ratio); each (B,).

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is out of its range.
    """
    chosen_log_ratios = chosen_logps - ref_chosen_logps
    rejected_log_ratios = rejected_logps - ref_rejected_logps
    sorted_chosen, order = chosen_log_ratios.sort(stable=True)
    sorted_rejected = rejected_log_ratios.sort().values
    losses = _sorted_losses(sorted_chosen - sorted_rejected, order, beta, label_smoothing)
    return LossOutput(
        losses, beta * chosen_log_ratios.detach(), beta * rejected_log_ratios.detach()
    )


def _sorted_losses(
    sorted_margins: Tensor, order: Tensor, beta: float, label_smoothing: float
) -> Tensor:
    """Return the loss of each margin, (B,), nats, at the example that holds its rank."""
    check_positive(beta=beta)
    check_label_smoothing(label_smoothing)
    margins = beta * sorted_margins
    losses = smoothed_logistic(margins, label_smoothing)
    return losses[order.argsort()]
