r"""RPO: fits the policy's reward margin to that of a reward model, not only to its sign.

Source: Nvidia 2024, arXiv:2406.11704 (Nemotron-4, reward-aware preference optimisation), with the
forward KL and the squared distance of Sun et al. 2025, arXiv:2502.00203. Departures from it: none.
Use it when: you trust the margins of a reward model, and want to reproduce more than their sign.
Not when: only the order of scores means something.
Differs from: none: NeMo-Aligner has the same three distances, and no other of the systems compared
has the loss.

.. math::
    \ell = D(m, \eta g),
    \quad m = \beta (\rho_c - \rho_r),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}, \\
    D(a, b) = \mathrm{KL}\bigl(\sigma(b) \,\|\, \sigma(a)\bigr) \text{ (backward\_kl)},
    \ \mathrm{KL}\bigl(\sigma(a) \,\|\, \sigma(b)\bigr) \text{ (forward\_kl)},
    \ (a - b)^2 \text{ (squared)}

g is the margin of the data, KL that of two Bernoulli distributions. The names and the defaults are
those of NeMo-Aligner (``rpo_bwd_kl``, ``rpo_fwd_kl``, ``rpo_sq``). The term "RPO" for DPO plus an
SFT loss on the chosen completion (arXiv:2405.16436) is something else: add ``sft`` for that.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_choice, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("rpo", family="data")
def rpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    margins: Tensor,
    *,
    beta: float = 0.2,
    eta: float = 1.0,
    distance: str = "backward_kl",
) -> LossOutput:
    """Return the reward-aware loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        margins: By how much the chosen completion is better, on the data's own scale; (B,).
        beta: Reward per nat of log-ratio; greater than 0.
        eta: Reward per unit of ``margins``; greater than 0.
        distance: ``"backward_kl"``, ``"forward_kl"`` or ``"squared"``.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` or ``eta`` is not greater than 0 or ``distance`` is none of these.
    """
    check_positive(beta=beta, eta=eta)
    check_choice("distance", distance, ("backward_kl", "forward_kl", "squared"))
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    implicit, wanted = chosen_rewards - rejected_rewards, eta * margins
    if distance == "squared":
        losses = (implicit - wanted) ** 2
    elif distance == "backward_kl":
        losses = _bernoulli_kl(wanted, implicit)
    else:
        losses = _bernoulli_kl(implicit, wanted)
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())


def _bernoulli_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(sigmoid(first) || sigmoid(second)) of Bernoulli distributions; same shape, nats."""
    heads = torch.sigmoid(first) * (logsigmoid(first) - logsigmoid(second))
    tails = torch.sigmoid(-first) * (logsigmoid(-first) - logsigmoid(-second))
    return heads + tails
