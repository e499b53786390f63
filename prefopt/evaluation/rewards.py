"""Implicit rewards of pairs, as the loss that made the policy defines them."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.losses.vocabulary import SCALARS
from prefopt.objective import Objective
from prefopt.objective.inputs import Completions, term_output
from prefopt.objective.objective import Term
from prefopt.objective.preference_index import PreferenceIndex, Ranking

__all__ = ["NoRewardsError", "PairLogps", "PairRewards", "implicit_rewards"]


class NoRewardsError(ValueError):
    """A loss defines no rewards on pairs, or none that log-probs alone determine."""


class PairLogps(NamedTuple):
    """Log-probs and lengths of pairs, by one model.

    Attributes:
        chosen: Log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: The same of the rejected completion; (B,), tokens.
        per_token: Log-prob of each token, all chosen completions before all rejected ones; (L,),
            nats. Only losses on parts of a completion need it.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    per_token: Tensor | None = None


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
    """Return the rewards of held-out pairs, by the first loss of a sum that defines any.

    An unpaired loss, such as KTO, is computed on both completions of each pair; one on rankings, on
    rankings of two.

    Args:
        objective: What the policy was trained with.
        policy: The policy's log-probs of the pairs.
        reference: The reference's log-probs of them; None where the loss needs none.

    Raises:
        NoRewardsError: If no loss of the sum defines rewards on pairs, or they depend on numbers
            that only training has.
        ValueError: If the loss needs a reference or log-probs of tokens and there are none.
    """
    for term in objective.terms:
        loss = term.loss
        if loss.needs_reference and reference is None:
            raise ValueError(f"the rewards of {loss.name!r} need the log-probs of the reference")
        parts = "head_logps" in term.quantities
        if parts and (policy.per_token is None or (reference and reference.per_token is None)):
            raise ValueError(f"the rewards of {loss.name!r} need `per_token` log-probs")
        rewards = _rewards(term, policy, reference)
        if rewards is not None:
            return rewards
    raise NoRewardsError(f"{objective.name!r} defines no rewards on pairs")


def _rewards(term: Term, policy: PairLogps, reference: PairLogps | None) -> PairRewards | None:
    """Return the rewards of a term, computed on all pairs as one batch; None if it has none."""
    pairs = len(policy.chosen)
    chosen, rejected = torch.arange(2 * pairs).tensor_split(2)
    index = PreferenceIndex(
        chosen=chosen,
        rejected=rejected,
        unpaired=torch.arange(2 * pairs),
        labels=torch.arange(2 * pairs) < pairs,
        preferred=chosen,
        rankings=(
            Ranking(
                torch.stack([chosen, rejected], 1), torch.tensor([[1.0, 0.0]]).expand(pairs, 2)
            ),
        ),
    )
    # Weights move the loss, not the rewards.
    term = replace(term, options=replace(term.options, use_weighting=False))
    output = term_output(term, index, _completions(policy, reference))
    of_chosen, of_rejected = output.chosen_rewards, output.rejected_rewards
    if output.rewards is not None:
        of_chosen, of_rejected = output.rewards.tensor_split(2)
    if of_chosen is None or of_rejected is None:
        return None
    if torch.isnan(of_chosen + of_rejected).any():
        raise NoRewardsError(
            f"the rewards of {term.loss.name!r} depend on numbers that only training has"
        )
    return PairRewards(of_chosen, of_rejected)


def _completions(policy: PairLogps, reference: PairLogps | None) -> Completions:
    """Return the log-probs of both completions of all pairs, with NaN for unknown numbers."""
    unknown = torch.full_like(policy.chosen[0], torch.nan)
    return Completions(
        torch.cat([policy.chosen, policy.rejected]),
        torch.cat([policy.chosen_lengths, policy.rejected_lengths]),
        None if reference is None else torch.cat([reference.chosen, reference.rejected]),
        policy.per_token,
        None if reference is None else reference.per_token,
        divergences=unknown.expand(2 * len(policy.chosen)),
        scalars=dict.fromkeys(SCALARS, unknown),
    )
