r"""R-DPO: DPO with a price on each token by which the chosen completion is longer.

Source: Park et al. 2024, arXiv:2403.19159 (length-regularised DPO). Departures from it: none.
Use it when: answers grow longer because the chosen completions are longer.
Not when: people really prefer longer answers: that part of the preference is not learnt.

.. math::
    \ell = -\log \sigma\bigl(\beta (\rho_c - \rho_r) + \alpha (|y_c| - |y_r|)\bigr),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

It is DPO for the reward r(y) - alpha |y|: a longer chosen completion pulls less. With the opposite
sign, which some implementations have, it would pull more. The default of alpha is ours, that of
beta is that of ``dpo``; the paper's could not be checked.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_not_negative, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("r_dpo", family="data", aliases=["length_dpo"])
def r_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.01,
) -> LossOutput:
    """Return the length-regularised DPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: Reward per nat of log-ratio; greater than 0.
        alpha: Reward taken off per token; at least 0, where the loss is DPO.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``alpha`` is out of its range.
    """
    check_positive(beta=beta)
    check_not_negative(alpha=alpha)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    # Integers times a float would be float32, whatever the margins are.
    length_margins = alpha * (chosen_lengths - rejected_lengths).to(margins.dtype)
    losses = -logsigmoid(margins + length_margins)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
