r"""NCA: raises the chosen completion in absolute terms, by telling each completion from noise.

Source: Chen et al. 2024, arXiv:2402.05369, NCA on preference pairs (K = 2). Departures from it:
none.
Use it when: chosen completions become less likely in training, and should not.
Not when: the chosen completion is merely the less bad one.
Differs from: none: the same in the authors' code, TRL and Liger.

.. math::
    \ell = -\log \sigma(\beta \rho_c)
        - \tfrac{1}{2} \log \sigma(-\beta \rho_c) - \tfrac{1}{2} \log \sigma(-\beta \rho_r),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The rewards themselves count, not only their difference: the chosen reward is drawn to log 2, the
rejected one is pushed down without end. InfoNCA on pairs, of the same paper, is ``dpo``. The paper
has beta 0.1 for its model of 8x7B parameters; the authors' configuration for 7B has 0.01.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("nca", family="anchored", aliases=["nca_pair"], published={"beta": (0.01, 0.1)})
def nca_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    """Return the NCA loss of each pair, unreduced.

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
    noise = logsigmoid(-chosen_rewards) + logsigmoid(-rejected_rewards)
    losses = -logsigmoid(chosen_rewards) - noise / 2
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
