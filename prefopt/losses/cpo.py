"""CPO and its two variants: a pair compared by the policy's own log-probs, without reference."""

from torch import Tensor
from torch.nn.functional import relu

from prefopt.losses.common import (
    average_logps,
    check_label_smoothing,
    check_positive,
    smoothed_logistic,
)
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("cpo", family="no_reference", published={"beta": (0.1, 0.1)})
def cpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> LossOutput:
    r"""CPO: logistic loss on the difference of the two log-probs; no reference.

    Source: Xu et al. 2024, arXiv:2401.08417, the preference term of the objective; label smoothing
    as in TRL's CPOTrainer. Departures from it: the paper adds the likelihood of the chosen
    completion; here that is a term of its own, ``cpo + sft``.
    Use it when: there is no memory or time for a reference; add ``sft`` as the paper does.
    Not when: used alone for long: nothing keeps chosen completions likely.
    Differs from: TRL adds ``cpo_alpha`` (1 by default) times the likelihood of the chosen
    completions, a mean over the tokens of the batch: ``cpo + sft`` here.
    Differs from: the authors' current code (ALMA) runs ``arpo`` under this name.

    .. math::
        \ell = -(1 - \epsilon) \log \sigma(m) - \epsilon \log \sigma(-m),
        \quad m = \beta \bigl(\log \pi(y_c \mid x) - \log \pi(y_r \mid x)\bigr)

    This is ``dpo`` with a uniform reference.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        beta: Reward per nat of log-prob; greater than 0.
        label_smoothing: Probability that a label is flipped; at least 0, below 0.5.

    Returns:
        Losses and detached rewards (beta times log-prob), each (B,).

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is out of its range.
    """
    check_positive(beta=beta)
    check_label_smoothing(label_smoothing)
    chosen_rewards, rejected_rewards = beta * chosen_logps, beta * rejected_logps
    margins = chosen_rewards - rejected_rewards
    losses = smoothed_logistic(margins, label_smoothing)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("cpo_hinge", family="no_reference")
def cpo_hinge_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float = 0.1
) -> LossOutput:
    r"""CPO with a hinge: zero once the chosen log-prob is ahead by 1/beta nats; no reference.

    Source: the ``hinge`` variant of the authors' code of CPO (Xu et al. 2024, arXiv:2401.08417) and
    of TRL's CPOTrainer. Departures from it: the likelihood of the chosen completion that both add
    is a term of its own, ``cpo_hinge + sft``.
    Use it when: pairs should stop counting once they are ahead by 1/beta nats.
    Not when: used alone for long: nothing keeps chosen completions likely.
    Differs from: TRL and ALMA add a likelihood term to the same loss.

    .. math::
        \ell = \max\Bigl(0,\, 1 - \beta \bigl(\log \pi(y_c \mid x) - \log \pi(y_r \mid x)\bigr)
            \Bigr)

    It is beta times the calibration term of ``slic`` with ``delta=1/beta``.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        beta: Reward per nat of log-prob; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-prob), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_rewards, rejected_rewards = beta * chosen_logps, beta * rejected_logps
    losses = relu(1 - (chosen_rewards - rejected_rewards))
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("cpo_ipo", family="no_reference")
def cpo_ipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    r"""CPO with IPO's square: the gap of log-probs per token is drawn to 1/(2 beta); no reference.

    Source: the ``ipo`` variant of TRL's CPOTrainer: IPO (Azar et al. 2023, arXiv:2310.12036)
    without its reference. Departures from it: the likelihood of the chosen completion that TRL
    adds is a term of its own, ``cpo_ipo + sft``.
    Use it when: the gap of log-probs per token should settle at a target.
    Not when: some pairs deserve more than that target, or less.
    Differs from: TRL adds a likelihood term to the same loss.

    .. math::
        \ell = \Bigl(\frac{\log \pi(y_c \mid x)}{|y_c|} - \frac{\log \pi(y_r \mid x)}{|y_r|}
            - \frac{1}{2 \beta}\Bigr)^2

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: Half the inverse of the gap aimed at, in nats per token; greater than 0.

    Returns:
        Losses and detached rewards (beta times mean log-prob), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_mean_logps = average_logps(chosen_logps, chosen_lengths)
    rejected_mean_logps = average_logps(rejected_logps, rejected_lengths)
    losses = (chosen_mean_logps - rejected_mean_logps - 1 / (2 * beta)) ** 2
    return LossOutput(
        losses, beta * chosen_mean_logps.detach(), beta * rejected_mean_logps.detach()
    )
