r"""BCO on pairs: classifies rewards as chosen or rejected, on either side of a moving threshold.

Source: Jung et al. 2024, arXiv:2404.04656 (BCO). Departures from it: the threshold is beta times
the mean of all log-ratios so far, chosen and rejected alike, where the paper keeps a moving average
of the mean of the two class means, the same thing as long as there are as many of each; the
re-weighting of rejected completions by a prompt classifier (UDM) is not done.
Use it when: the reward should work as a classifier of single completions.
Not when: chosen and rejected rewards drift together quickly: the threshold follows slowly.
Differs from: in TRL up to 0.28 and LLaMA-Factory the threshold is the plain mean of the batch means
so far; ours weighs each completion alike, which is the same for batches of one size.
Differs from: TRL 1.16, Liger and the NCA repository's biasedNCA leave the threshold out:
``shift=False``.

.. math::
    \ell = -\log \sigma(\beta \rho_c - \delta) - \log \sigma\bigl(-(\beta \rho_r - \delta)\bigr),
    \quad \delta = \beta \, \overline{\rho},
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The loss of unpaired data is ``bco``: a mean over completions, where this one adds the two of a
pair. The default of beta is the paper's, a tenth of TRL's.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("bco_pair", family="anchored", published={"beta": (0.01, 0.01)})
def bco_pair_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    mean_log_ratio: Tensor,
    *,
    beta: float = 0.01,
    shift: bool = True,
) -> LossOutput:
    """Return the BCO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        mean_log_ratio: Mean log-ratio of all completions trained on so far, each counted once for
            each of its pairs; (), nats. No gradient flows through it.
        beta: Reward per nat of log-ratio; greater than 0.
        shift: Whether rewards are compared with their running mean, or with 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    threshold = beta * mean_log_ratio.detach() if shift else 0.0
    losses = -logsigmoid(chosen_rewards - threshold) - logsigmoid(threshold - rejected_rewards)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
