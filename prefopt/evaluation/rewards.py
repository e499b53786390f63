"""Implicit rewards of pairs, as the loss that made the policy defines them."""

from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.losses import LossOutput, Objective

__all__ = ["PairLogps", "PairRewards", "implicit_rewards"]


class PairLogps(NamedTuple):
    """What one model thinks of pairs.

    Attributes:
        chosen: Log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: The same of the rejected completion; (B,), tokens.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


class PairRewards(NamedTuple):
    """Implicit rewards of pairs.

    Attributes:
        chosen: Of the chosen completions; (B,).
        rejected: Of the rejected completions; (B,).
    """

    chosen: Tensor
    rejected: Tensor


def implicit_rewards(
    objective: Objective, policy: PairLogps, reference: PairLogps | None = None
) -> PairRewards:
    """Return the rewards that the first loss of a sum defines, on held-out pairs.

    A loss on single completions, such as KTO, is asked about both completions of each pair.

    Args:
        objective: What the policy was trained with.
        policy: What the policy thinks of the pairs.
        reference: What the reference thinks of them; None where the loss needs none.

    Raises:
        ValueError: If the loss needs a reference and there is none, or no loss of the sum defines
            rewards on pairs.
    """
    for term in objective.terms:
        loss, options = term.loss, term.hyperparameters
        if loss.needs_reference and reference is None:
            raise ValueError(f"the rewards of {loss.name!r} need the log-probs of the reference")
        if loss.data_kind == "unpaired":
            chosen = loss(**_single(loss.inputs, policy, reference, chosen=True), **options)
            rejected = loss(**_single(loss.inputs, policy, reference, chosen=False), **options)
            if chosen.rewards is not None and rejected.rewards is not None:
                return PairRewards(chosen.rewards, rejected.rewards)
        elif loss.data_kind == "paired":
            output: LossOutput = loss(**_paired(loss.inputs, policy, reference), **options)
            if output.chosen_rewards is not None and output.rejected_rewards is not None:
                return PairRewards(output.chosen_rewards, output.rejected_rewards)
    raise ValueError(f"{objective.name!r} defines no rewards on pairs")


def _paired(
    inputs: tuple[str, ...], policy: PairLogps, reference: PairLogps | None
) -> dict[str, Tensor]:
    known = {
        "chosen_logps": policy.chosen,
        "rejected_logps": policy.rejected,
        "chosen_lengths": policy.chosen_lengths,
        "rejected_lengths": policy.rejected_lengths,
    }
    if reference is not None:
        known |= {"ref_chosen_logps": reference.chosen, "ref_rejected_logps": reference.rejected}
    return {name: known[name] for name in inputs}


def _single(
    inputs: tuple[str, ...], policy: PairLogps, reference: PairLogps | None, *, chosen: bool
) -> dict[str, Tensor]:
    logps = policy.chosen if chosen else policy.rejected
    known = {
        "logps": logps,
        "lengths": policy.chosen_lengths if chosen else policy.rejected_lengths,
        "desirable": torch.full(logps.shape, chosen),
        # It moves the loss, not the reward.
        "kl": logps.new_zeros(()),
    }
    if reference is not None:
        known["ref_logps"] = reference.chosen if chosen else reference.rejected
    return {name: known[name] for name in inputs}
