r"""Robust DPO: the DPO loss, corrected so that flipped labels leave its expectation unchanged.

Source: Chowdhury et al. 2024, arXiv:2403.00409 (rDPO). Departures from it: none.
Use it when: a known share of the labels was flipped at random.
Not when: that share is a guess: the loss falls without bound as margins grow.
Differs from: none in formula: the same in TRL 1.16 and Liger.
Differs from: the default of ``label_smoothing`` is 0.1 here; at TRL's default of 0 it is plain DPO.

.. math::
    \ell = \frac{-(1 - \epsilon) \log \sigma(m) + \epsilon \log \sigma(-m)}{1 - 2 \epsilon},
    \quad m = \beta (\rho_c - \rho_r),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

If labels are flipped with probability epsilon, the mean of this loss over noisy labels is the DPO
loss on clean ones. The price is a loss that falls without bound as the margin grows, with slope
epsilon / (1 - 2 epsilon). Conservative DPO (``dpo`` with ``label_smoothing``) is another loss: it
is bounded below, and biased. The defaults are the paper's, as TRL's list of papers gives them.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_label_smoothing, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("robust", family="margin", aliases=["rdpo"], published={"beta": (0.1, 0.1)})
def robust_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> LossOutput:
    """Return the robust DPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.
        label_smoothing: Probability that a label is flipped, the paper's epsilon; at least 0, where
            the loss is DPO, and below 0.5.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is out of its range.
    """
    check_positive(beta=beta)
    check_label_smoothing(label_smoothing)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    as_labelled = -(1 - label_smoothing) * logsigmoid(margins)
    as_flipped = -label_smoothing * logsigmoid(-margins)
    losses = (as_labelled - as_flipped) / (1 - 2 * label_smoothing)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
