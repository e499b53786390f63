r"""Cal-DPO: DPO plus a regression that fixes where both log-ratios should end up.

Source: Xiao et al. 2024, arXiv:2412.14516 (Cal-DPO). Departures from it: none.
Use it when: the scale of rewards matters, or DPO makes chosen completions less likely.
Not when: pairs deserve very different log-ratios: all are drawn to the same two targets.

.. math::
    \ell = -\log \sigma(\rho_c - \rho_r)
        + \Bigl(\rho_c - \frac{1}{2 \beta}\Bigr)^2 + \Bigl(\rho_r + \frac{1}{2 \beta}\Bigr)^2,
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

beta does not scale the logistic part: it sets the targets, which are those of hard ``sppo``. The
default is that of the authors' run of 2.8B parameters on HH; they have 0.001 on TL;DR, and for a
model of 7B 0.001 and 0.002.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("cal_dpo", family="anchored", published={"beta": (0.001, 0.1)})
def cal_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    """Return the calibrated DPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio, for true rewards of +1/2 and -1/2; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_log_ratios = chosen_logps - ref_chosen_logps
    rejected_log_ratios = rejected_logps - ref_rejected_logps
    target = 1 / (2 * beta)
    calibration = (chosen_log_ratios - target) ** 2 + (rejected_log_ratios + target) ** 2
    losses = calibration - logsigmoid(chosen_log_ratios - rejected_log_ratios)
    return LossOutput(
        losses, beta * chosen_log_ratios.detach(), beta * rejected_log_ratios.detach()
    )
