r"""DPO-Positive: DPO that pays for every nat the chosen completion falls below the reference.

Source: Pal et al. 2024, arXiv:2402.13228 (Smaug). Departures from it: none.
Use it when: the two completions differ in few tokens, and DPO lowers both.
Not when: the chosen completions should become less likely (see ``apo_down``).

.. math::
    \ell = -\log \sigma\Bigl(\beta \bigl[\rho_c - \rho_r - \lambda \max(0, -\rho_c)\bigr]\Bigr),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The paper compares lambda at 5, 50 and 500, which changes little, and beta at 0.1, 0.3 and 1.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from prefopt.losses.common import check_not_negative, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss(
    "dpop",
    family="anchored",
    aliases=["smaug"],
    published={"beta": (0.1, 1.0), "lambda_": (5.0, 500.0)},
)
def dpop_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.3,
    lambda_: float = 50.0,
) -> LossOutput:
    """Return the DPO-Positive loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        lambda_: Weight of the penalty; at least 0, where the loss is DPO.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``lambda_`` is out of its range.
    """
    check_positive(beta=beta)
    check_not_negative(lambda_=lambda_)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    penalties = lambda_ * relu(-chosen_rewards)
    losses = -logsigmoid(chosen_rewards - rejected_rewards - penalties)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
