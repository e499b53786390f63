r"""SPPO: regression of each log-ratio on how often its completion wins, a step of self-play.

Source: Wu et al. 2024, arXiv:2405.00675 (SPPO). Departures from it: the two completions of a pair
stand for the paper's several samples per prompt, each with its win rate P against the policy. Where
the data hold no win rates these are p and 1 - p of the preference probability, or else 1 and 0, the
"hard" loss.
Use it when: pairs are sampled from the policy and judged, round after round.
Not when: beta is left at 0.1, as for other losses: the paper takes 0.001.
Differs from: TRL and Liger (``sppo_hard``) sum over the two completions: twice this loss, or
``reduction="sum"``. The authors' code takes the mean, as here.
Differs from: TRL leaves beta at 0.1, where the paper has 0.001: targets of 5 nats instead of 500.

.. math::
    \ell = \frac{1}{n} \Bigl[ \bigl(\rho_c - \tfrac{P_c - 1/2}{\beta}\bigr)^2
        + \bigl(\rho_r - \tfrac{P_r - 1/2}{\beta}\bigr)^2 \Bigr],
    \quad n = 2 \text{ (mean) or } 1 \text{ (sum)},
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

beta is 1 / eta of the paper, which takes eta = 1000.
"""

from torch import Tensor

from prefopt.losses.common import check_choice, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("sppo", family="anchored", aliases=["sppo_hard"], published={"beta": (0.001, 0.001)})
def sppo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_win_rates: Tensor,
    rejected_win_rates: Tensor,
    *,
    beta: float = 0.001,
    reduction: str = "mean",
) -> LossOutput:
    """Return the SPPO loss of each pair, unreduced over pairs.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        chosen_win_rates: How often the chosen completion wins against the policy's own; (B,).
        rejected_win_rates: The same of the rejected completion; (B,).
        beta: The paper's 1 / eta; greater than 0.
        reduction: ``"mean"`` over the two completions of a pair, or their ``"sum"``.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0 or ``reduction`` is neither word.
    """
    check_positive(beta=beta)
    check_choice("reduction", reduction, ("mean", "sum"))
    chosen_log_ratios = chosen_logps - ref_chosen_logps
    rejected_log_ratios = rejected_logps - ref_rejected_logps
    chosen_targets = (chosen_win_rates - 0.5) / beta
    rejected_targets = (rejected_win_rates - 0.5) / beta
    losses = (chosen_log_ratios - chosen_targets) ** 2
    losses = losses + (rejected_log_ratios - rejected_targets) ** 2
    if reduction == "mean":
        losses = losses / 2
    return LossOutput(
        losses, beta * chosen_log_ratios.detach(), beta * rejected_log_ratios.detach()
    )
