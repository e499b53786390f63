"""SimPO and its hinge variant: log-probs per token with a target margin, without reference."""

from torch import Tensor
from torch.nn.functional import relu

from prefopt.losses.common import (
    average_logps,
    check_label_smoothing,
    check_not_negative,
    check_positive,
    smoothed_logistic,
    warn_outside,
)
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("simpo", family="no_reference", published={"beta": (2.0, 10.0)})
def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
) -> LossOutput:
    r"""SimPO: logistic loss on log-probs per token, with a margin to reach; no reference.

    Source: Meng et al. 2024, arXiv:2405.14734, Eq. 6; label smoothing as in the authors' code.
    Departures from it: none.
    Use it when: quality per token should count, and length should not.
    Not when: you cannot tune beta and gamma, or the policy must stay near: no reference holds it.
    Differs from: the authors' code and HALOs take ``gamma_beta_ratio`` (gamma is beta times that),
    TRL (``simpo_gamma``), torchtune and Liger gamma, which TRL divides by beta: the same loss once
    the parameters are mapped.
    Differs from: TRL adds ``cpo_alpha=1.0`` times the likelihood of the chosen completion unless
    told otherwise (``simpo + sft`` here), and its defaults are beta 0.1 and gamma 0.5, a target of
    5 nats per token.
    Differs from: the authors' code can add a likelihood term (``sft_weight``): ``simpo + 0.1*sft``
    here.

    .. math::
        \ell = -(1 - \epsilon) \log \sigma(m) - \epsilon \log \sigma(-m),
        \quad m = \frac{\beta}{|y_c|} \log \pi(y_c \mid x)
            - \frac{\beta}{|y_r|} \log \pi(y_r \mid x) - \gamma

    The defaults are those of the authors' run on Llama 3 (base); all of their runs have beta from 2
    to 10 and gamma from 0.1 to 0.8 times beta.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: Reward per nat per token; greater than 0.
        gamma: Reward by which the chosen completion should be ahead; at least 0.
        label_smoothing: Probability that a label is flipped; at least 0, below 0.5.

    Returns:
        Losses and detached rewards (beta times mean log-prob), each (B,).

    Raises:
        ValueError: If a hyper-parameter is out of its range.
    """
    _check(beta, gamma)
    check_label_smoothing(label_smoothing)
    chosen_rewards = beta * average_logps(chosen_logps, chosen_lengths)
    rejected_rewards = beta * average_logps(rejected_logps, rejected_lengths)
    margins = chosen_rewards - rejected_rewards - gamma
    losses = smoothed_logistic(margins, label_smoothing)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("simpo_hinge", family="no_reference", published={"beta": (2.0, 10.0)})
def simpo_hinge_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> LossOutput:
    r"""SimPO with a hinge: zero once the chosen completion is ahead by the margin and 1 more.

    Source: the ``hinge`` variant of the authors' code of SimPO (Meng et al. 2024,
    arXiv:2405.14734). Departures from it: none.
    Use it when: ``simpo`` fits, and pairs past the target should stop counting.
    Not when: you cannot tune beta and gamma.
    Differs from: none: the same in the authors' code.

    .. math::
        \ell = \max(0,\, 1 - m),
        \quad m = \frac{\beta}{|y_c|} \log \pi(y_c \mid x)
            - \frac{\beta}{|y_r|} \log \pi(y_r \mid x) - \gamma

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: Reward per nat per token; greater than 0.
        gamma: Reward by which the chosen completion should be ahead; at least 0.

    Returns:
        Losses and detached rewards (beta times mean log-prob), each (B,).

    Raises:
        ValueError: If a hyper-parameter is out of its range.
    """
    _check(beta, gamma)
    chosen_rewards = beta * average_logps(chosen_logps, chosen_lengths)
    rejected_rewards = beta * average_logps(rejected_logps, rejected_lengths)
    losses = relu(1 - (chosen_rewards - rejected_rewards - gamma))
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


def _check(beta: float, gamma: float) -> None:
    check_positive(beta=beta)
    check_not_negative(gamma=gamma)
    ratio = gamma / beta
    warn_outside("simpo: gamma / beta", ratio, 0.1, 0.8, "Meng et al. 2024, arXiv:2405.14734,")
