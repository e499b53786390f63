r"""Hinge: the RSO hinge on the reward margin, zero once the margin is 1.

Source: Liu et al. 2023, arXiv:2309.06657 (RSO), hinge-norm loss. Departures from it: none.
Use it when: pairs should stop counting once they are right by a margin of 1/beta.
Not when: some pairs are clearer than others: each is pushed to the same margin.
Differs from: none: the same in TRL, torchtune (``RSOLoss``) and Liger. TRL's documentation lists it
as the SLiC setting: it is not SLiC-HF, see ``slic``.

.. math::
    \ell = \max\bigl(0,\, 1 - \beta (\rho_c - \rho_r)\bigr),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

TRL and torchtune have beta at 0.1; the paper's gamma, 0.05, is the default here.
"""

from torch import Tensor
from torch.nn.functional import relu

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("hinge", family="margin", aliases=["rso"], published={"beta": (0.05, 0.05)})
def hinge_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.05,
) -> LossOutput:
    """Return the hinge loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    losses = relu(1 - (chosen_rewards - rejected_rewards))
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
