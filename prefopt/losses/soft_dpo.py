r"""DPO on soft labels: how likely the preference is, pair by pair, instead of a hard choice.

Where the data hold no probability it is 1, and both losses are ``dpo``, whose beta is the default.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("soft_dpo", family="data")
def soft_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    preference_probabilities: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    r"""Soft DPO: cross-entropy between a probability of the preference and the policy's own.

    Source: Mitchell's note on conservative DPO (cDPO), ericmitchell.ai/cdpo.pdf, Eq. 3, with a
    probability for each pair as in Furuta et al. 2024, arXiv:2409.06691. Departures from it: none.
    Use it when: each pair has a probability, such as a share of votes, and margins should reflect
    it.
    Not when: probabilities come from an uncalibrated judge: they are reproduced with their errors.

    .. math::
        \ell = -p \log \sigma(m) - (1 - p) \log \sigma(-m),
        \quad m = \beta (\rho_c - \rho_r),
        \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

    It is least at a margin of log(p / (1 - p)): the policy is to reproduce the probability.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        preference_probabilities: Probability p that the chosen completion is preferred; (B,).
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
    agrees = preference_probabilities * logsigmoid(margins)
    differs = (1 - preference_probabilities) * logsigmoid(-margins)
    losses = -agrees - differs
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


@register_loss("geometric_dpo", family="data", aliases=["gdpo"])
def geometric_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    preference_probabilities: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    r"""Geometric DPO: the surer the preference, the steeper the loss; flat at probability 1/2.

    Source: Furuta et al. 2024, arXiv:2409.06691 (GDPO). Departures from it: none.
    Use it when: each pair has a probability, and unsure pairs should count less.
    Not when: margins should stop where the probability says: that is ``soft_dpo``.

    .. math::
        \ell = -\log \sigma\bigl((2 p - 1) \, \beta (\rho_c - \rho_r)\bigr),
        \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

    It is DPO between two weighted geometric means of the completions' likelihoods.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        preference_probabilities: Probability p that the chosen completion is preferred; (B,).
        beta: Reward per nat of log-ratio; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    certainty = 2 * preference_probabilities - 1
    losses = -logsigmoid(certainty * (chosen_rewards - rejected_rewards))
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
