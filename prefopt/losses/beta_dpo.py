r"""beta-DPO: DPO whose beta follows the batch, larger where the policy already separates its pairs.

Source: Wu et al. 2024, arXiv:2407.08639 (beta-DPO, batch level). Departures from it: examples are
not filtered by their margin, the second half of the method; margins M are in nats of log-ratio and
the batch's beta is at least 0.001, both as in the authors' code.
Use it when: the quality of pairs varies over the data, and one beta does not fit all.
Not when: the optimiser step holds few pairs: beta then follows noise.

.. math::
    \ell = -\log \sigma(\beta_B M),
    \quad \beta_B = \max\bigl(\beta \, [1 + \alpha (\mathrm{E}_B[M] - M_0)],\, 0.001\bigr),
    \quad M = \rho_c - \rho_r,
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

M_0 is the running mean of M over training. No gradient flows through the batch's beta. The batch is
every example of an optimiser step. The defaults are those of the authors' example.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_not_negative, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("beta_dpo", family="batch", batch_dependent=True)
def beta_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    mean_margin: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.6,
) -> LossOutput:
    """Return the loss of each pair under the batch's beta, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        mean_margin: Running mean over training of chosen minus rejected log-ratio; (), nats.
        beta: Reward per nat of log-ratio in a batch at the running mean; greater than 0.
        alpha: Relative change of beta per nat off the running mean; at least 0, where the loss is
            DPO.

    Returns:
        Losses and detached rewards (``beta``, not the batch's, times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``alpha`` is out of its range.
    """
    check_positive(beta=beta)
    check_not_negative(alpha=alpha)
    chosen_log_ratios = chosen_logps - ref_chosen_logps
    rejected_log_ratios = rejected_logps - ref_rejected_logps
    margins = chosen_log_ratios - rejected_log_ratios
    surplus = margins.detach().mean() - mean_margin.detach()
    batch_beta = (beta * (1 + alpha * surplus)).clamp(min=0.001)
    losses = -logsigmoid(batch_beta * margins)
    return LossOutput(
        losses, beta * chosen_log_ratios.detach(), beta * rejected_log_ratios.detach()
    )
