r"""SFT: negative log-likelihood of the preferred completion, mostly as a term beside another loss.

Source: Pang et al. 2024, arXiv:2404.19733 (the length-normalised NLL term of iterative
RPO, by ``normalize="sequence"``). Departures from it: the default averages over the tokens of the
batch, as cross-entropy training and ``sft`` of TRL's DPOTrainer do.
Use it when: chosen completions should stay, or become, likely: ``dpo + 0.2*sft``.
Not when: chosen completions are worse than what the policy writes.
Differs from: TRL repeats the mean over the tokens of the batch as the loss of each example; the
mean is the same. HALOs computes the same.

.. math::
    \ell = -\log \pi(y_c \mid x) \text{ per token of the batch, or }
    \ell = -\frac{1}{|y_c|} \log \pi(y_c \mid x) \text{ per sequence}
"""

import torch
from torch import Tensor

from prefopt.losses.common import average_logps, check_choice
from prefopt.losses.registry import LossOutput, register_loss


def sft_counts(chosen_lengths: Tensor, *, normalize: str) -> Tensor:
    """Return what each loss weighs in the mean's denominator, (B,): its tokens, or one."""
    return chosen_lengths if normalize == "token" else torch.ones_like(chosen_lengths)


@register_loss("sft", family="term", counts=sft_counts)
def sft_loss(
    chosen_logps: Tensor, chosen_lengths: Tensor, *, normalize: str = "token"
) -> LossOutput:
    """Return the negative log-likelihood of each preferred completion, unreduced.

    Args:
        chosen_logps: Policy log-prob of the preferred completion, summed over tokens; (B,), nats.
        chosen_lengths: Its length; (B,), tokens.
        normalize: ``"token"``: every token weighs the same, so a loss is the sum over its tokens
            and the mean divides by the tokens of all (``sft_counts``). ``"sequence"``: every
            completion weighs the same, so a loss is the mean over its tokens.

    Returns:
        Losses; (B,). No rewards.

    Raises:
        ValueError: If ``normalize`` is neither word.
    """
    check_choice("normalize", normalize, ("token", "sequence"))
    if normalize == "token":
        return LossOutput(-chosen_logps)
    return LossOutput(-average_logps(chosen_logps, chosen_lengths))
