r"""BCO: a binary classifier of desirable and undesirable completions, whose logit is the reward.

Source: Jung et al. 2024, arXiv:2404.04656. Departures from it: the shift is beta times the mean of
all log-ratios so far, as in TRL's former BCOTrainer, where the paper takes the midpoint of the two
labels' means (equal where the labels are balanced); the paper's importance weights for data whose
two labels come from different prompts are left out.
Use it when: data is unpaired, and the reward should work as a classifier.
Not when: the two labels come from different prompts: the prompt then tells them apart.
Differs from: TRL's former BCOTrainer computed the same, with its shift kept in float32. Its weights
for prompts (UDM) are left out here.

.. math::
    \ell = \begin{cases}
        -\log \sigma(\beta \rho_y - \delta) & y \text{ desirable} \\
        -\log \sigma(\delta - \beta \rho_y) & y \text{ undesirable}
    \end{cases}
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)},
    \quad \delta = \beta \bar{\rho}

Each pair's two losses sum to an upper bound of its ``dpo`` loss, whatever the shift. The default of
beta is the paper's; it was 0.1 in TRL's BCOTrainer.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("bco", family="unpaired", published={"beta": (0.01, 0.01)})
def bco_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    mean_log_ratio: Tensor,
    *,
    beta: float = 0.01,
) -> LossOutput:
    """Return the BCO loss of each completion, unreduced.

    Args:
        logps: Policy log-prob of the completion, summed over tokens; (B,), nats.
        ref_logps: Reference counterpart of ``logps``; (B,), nats.
        desirable: Whether the completion is desirable; (B,), bool.
        mean_log_ratio: Mean log-ratio of the completions trained on so far, before ``beta``; (),
            nats. No gradient flows through it.
        beta: Reward per nat of log-ratio; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio, not shifted), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    log_ratios = logps - ref_logps
    logits = beta * (log_ratios - mean_log_ratio.detach())
    losses = -logsigmoid(torch.where(desirable.bool(), logits, -logits))
    return LossOutput(losses, rewards=beta * log_ratios.detach())
