r"""chi-PO: DPO under a chi-squared penalty, which a policy far from the reference cannot ignore.

Source: Huang et al. 2024, arXiv:2407.13399, Algorithm 1. Departures from it: the clip of the margin
to twice the range of rewards, outside of which there is no gradient, is on request; exp goes on
along its tangent beyond exp(44.3) in float32 and exp(665.4) in float64 (the authors' experiments
clip the exponent instead).
Use it when: the policy over-optimises, and guarantees under partial coverage matter.
Not when: completions are long: their summed log-ratios saturate the exponential.

.. math::
    \ell = -\log \sigma\Bigl(\mathrm{clip}_{\pm 2 R}\bigl[
        \beta \phi(e^{\rho_c}) - \beta \phi(e^{\rho_r})\bigr]\Bigr),
    \quad \phi(z) = z + \log z,
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

With phi(z) = log z it is DPO. The new term dominates as soon as a log-ratio is positive, and then
exponentially: a sum over a long completion, at the reference's own beta, soon saturates the loss.
The default of beta is that of ``dpo``; the paper's could not be checked.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive, exponential
from prefopt.losses.registry import LossOutput, register_loss


@register_loss(
    "chi_po",
    family="margin",
    refuses={"f_divergence_type": "has a divergence of its own: use another loss"},
)
def chi_po_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    reward_range: float | None = None,
) -> LossOutput:
    """Return the chi-PO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Strength of the penalty; greater than 0.
        reward_range: The paper's R_max, the range of true rewards: margins are clipped to twice
            this. Greater than 0; None does not clip.

    Returns:
        Losses and detached rewards (beta times phi), each (B,).

    Raises:
        ValueError: If a hyper-parameter is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_rewards = beta * _phi(chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * _phi(rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    if reward_range is not None:
        check_positive(reward_range=reward_range)
        margins = margins.clamp(-2 * reward_range, 2 * reward_range)
    losses = -logsigmoid(margins)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


def _phi(log_ratios: Tensor) -> Tensor:
    """Return z + log z, given log z."""
    return exponential(log_ratios) + log_ratios
