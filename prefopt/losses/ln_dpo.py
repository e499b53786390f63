r"""LN-DPO: DPO on log-ratios per token, so that length alone earns no reward.

Source: Lambert et al. 2024, arXiv:2411.15124 (Tulu 3, length-normalised DPO). Departures from it:
none.
Use it when: lengths differ a lot, and length alone should not give a larger reward.
Not when: beta is copied from DPO: here it is per token, 2 to 15 in the paper.
Differs from: TRL's ``sigmoid_norm`` and open-instruct's ``dpo_norm`` are the same but for the
default of beta: 0.1 in TRL, 5 in open-instruct and here.

.. math::
    \ell = -\log \sigma\Bigl(\beta \Bigl[\frac{\rho_c}{|y_c|} - \frac{\rho_r}{|y_r|}\Bigr]\Bigr),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

Of 2, 5, 10 and 15 (its Table 18) the paper takes 5.
"""

from torch import Tensor

from prefopt.losses.common import average_logps
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.registry import LossOutput, register_loss


@register_loss(
    "ln_dpo", family="data", aliases=["sigmoid_norm", "dpo_norm"], published={"beta": (2.0, 15.0)}
)
def ln_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 5.0,
) -> LossOutput:
    """Return the length-normalised DPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: Reward per nat per token of log-ratio; greater than 0.

    Returns:
        Losses, and as detached rewards ``beta`` times the log-ratio per token; each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    return dpo_loss(
        average_logps(chosen_logps, chosen_lengths),
        average_logps(rejected_logps, rejected_lengths),
        average_logps(ref_chosen_logps, chosen_lengths),
        average_logps(ref_rejected_logps, rejected_lengths),
        beta=beta,
    )
