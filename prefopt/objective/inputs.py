"""What each loss takes of a scored batch.

A batch holds N completions; a ``PreferenceIndex`` says which of them are compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefopt.losses.registry import SCALARS, Loss, LossOutput
from prefopt.objective.objective import Term
from prefopt.objective.options import transformed, with_whole_rewards, wpo_weights
from prefopt.objective.preference_index import PreferenceIndex


@dataclass(frozen=True)
class Completions:
    """What is known of the N completions of a batch; all but ``lengths`` in nats.

    Attributes:
        logps: Policy log-probs, summed over tokens; (N,).
        lengths: Scored tokens; (N,).
        ref_logps: Reference counterpart of ``logps``; (N,), None if no loss needs it.
        per_token_logps: Policy log-prob of each scored token, completion after completion; (L,),
            needed for heads only.
        ref_per_token_logps: Reference counterpart; (L,).
        divergences: KL(reference || policy) at each token, summed over tokens; (N,).
        log_collisions: Log of the sum of squared probabilities over the vocabulary, summed over
            tokens; (N,), needed for WPO's weights only.
        scalars: Inputs that are one number for the whole batch, by name; (). ``mean_kl`` is
            ``kl`` of log-ratios per token.
    """

    logps: Tensor
    lengths: Tensor
    ref_logps: Tensor | None = None
    per_token_logps: Tensor | None = None
    ref_per_token_logps: Tensor | None = None
    divergences: Tensor | None = None
    log_collisions: Tensor | None = None
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


def loss_inputs(
    term: Term, index: PreferenceIndex, completions: Completions
) -> list[dict[str, Tensor]]:
    """Return what the loss of a term takes: of the completions of a batch, its options applied.

    Args:
        term: Whose loss.
        index: Which completions are compared, of the rows that the term looks at.
        completions: What is known of the completions.

    Returns:
        Tensors by the names of the loss's parameters; for a ranked loss once for each number of
        completions that is ranked, else once.
    """
    return [
        transformed(term.options, term.loss, term.hyperparameters, inputs)
        for inputs in _gathered(term.loss, term.inputs, index, completions)
    ]


def _gathered(
    loss: Loss, names: Sequence[str], index: PreferenceIndex, completions: Completions
) -> list[dict[str, Tensor]]:
    """Return the tensors of these names, of the completions that a loss of its kind compares."""
    of_kind = {
        "paired": _pairs,
        "unpaired": _unpaired,
        "preferred": _preferred,
        "ranked": _rankings,
    }[loss.data_kind]
    everything = (
        {**values, **completions.scalars} for values in of_kind(names, index, completions)
    )
    return [{name: values[name] for name in names if name in values} for values in everything]


def _pairs(
    names: Sequence[str], index: PreferenceIndex, completions: Completions
) -> Iterator[dict[str, Tensor]]:
    chosen, rejected = index.chosen, index.rejected
    values = _picked("chosen_", chosen, completions) | _picked("rejected_", rejected, completions)
    if any(map(_is_head, names)):
        values |= _heads(chosen, rejected, completions)
    probabilities = _or_default(index.preference_probabilities, chosen, 1.0)
    yield values | {
        "margins": _or_default(index.margins, chosen, 0.0),
        "preference_probabilities": probabilities,
        "chosen_win_rates": _or(index.chosen_win_rates, probabilities),
        "rejected_win_rates": _or(index.rejected_win_rates, 1 - probabilities),
    }


def _unpaired(
    names: Sequence[str], index: PreferenceIndex, completions: Completions
) -> Iterator[dict[str, Tensor]]:
    yield _picked("", index.unpaired, completions) | {"desirable": index.labels}


def _preferred(
    names: Sequence[str], index: PreferenceIndex, completions: Completions
) -> Iterator[dict[str, Tensor]]:
    yield _picked("chosen_", index.preferred, completions)


def _rankings(
    names: Sequence[str], index: PreferenceIndex, completions: Completions
) -> Iterator[dict[str, Tensor]]:
    for ranking in index.rankings:
        flat = _picked("ranked_", ranking.index.reshape(-1), completions)
        yield {name: value.view(ranking.index.shape) for name, value in flat.items()} | {
            "ranked_scores": ranking.scores
        }


def _picked(prefix: str, index: Tensor, completions: Completions) -> dict[str, Tensor]:
    sources = {
        f"{prefix}logps": completions.logps,
        f"{prefix}lengths": completions.lengths,
        f"ref_{prefix}logps": completions.ref_logps,
        f"{prefix}divergences": completions.divergences,
    }
    return {
        name: values.index_select(0, index)
        for name, values in sources.items()
        if values is not None
    }


def _is_head(name: str) -> bool:
    return name.endswith("head_logps")


def _or(column: Tensor | None, other: Tensor) -> Tensor:
    return other if column is None else column


def _or_default(column: Tensor | None, like: Tensor, default: float) -> Tensor:
    """Return a column of the data, or its default for every one where they have none."""
    return torch.full(like.shape, default, device=like.device) if column is None else column


def _heads(chosen: Tensor, rejected: Tensor, completions: Completions) -> dict[str, Tensor]:
    """Return the log-probs of the first tokens of both, as many as the shorter of them has."""
    assert completions.per_token_logps is not None  # whoever scores for such a loss keeps them
    lengths = completions.lengths
    both = torch.minimum(lengths[chosen], lengths[rejected])
    starts = lengths.cumsum(0) - lengths
    heads = {}
    sources = {"": completions.per_token_logps, "ref_": completions.ref_per_token_logps}
    for prefix, per_token in sources.items():
        if per_token is None:
            continue
        # In float64: a difference of sums over the whole batch keeps what one completion adds.
        sums = torch.nn.functional.pad(per_token.double().cumsum(0), (1, 0))
        for side, index in (("chosen", chosen), ("rejected", rejected)):
            head = sums[starts[index] + both] - sums[starts[index]]
            heads[f"{prefix}{side}_head_logps"] = head.to(per_token.dtype)
    return heads


def term_counts(term: Term, index: PreferenceIndex, lengths: Tensor) -> Tensor:
    """Return what a term's mean is taken over in this batch: its units, known before any forward.

    Args:
        term: A term of the objective.
        index: Of the whole batch.
        lengths: Scored tokens of each completion; (N,).

    Returns:
        Scalar: pairs, completions, rankings or tokens, as the loss counts.
    """
    # Log-probs are not known yet and not looked at.
    nothing = lengths.new_zeros(lengths.shape).float()
    unknown = Completions(
        nothing, lengths, nothing, scalars={name: nothing.sum() for name in SCALARS}
    )
    names = [name for name in term.loss.inputs if not _is_head(name)]
    counts = [
        term.loss.unit_counts(inputs, term.hyperparameters).sum()
        for inputs in _gathered(term.loss, names, index.of_rows(term.rows), unknown)
    ]
    return torch.stack(counts).sum() if counts else nothing.sum()


def term_output(term: Term, index: PreferenceIndex, completions: Completions) -> LossOutput:
    """Return what a term makes of the completions that it looks at, weights applied.

    The rewards of a ranking come back as those of its pairs.
    """
    outputs = [
        term.loss(**inputs, **term.hyperparameters)
        for inputs in loss_inputs(term, index, completions)
    ]
    if term.loss.data_kind == "ranked":
        output = _joined_rankings(outputs, index, completions)
    else:
        (output,) = outputs
    output = with_whole_rewards(term.options, index.margins, output)
    weights = term_weights(term, index, completions)
    return output if weights is None else output._replace(losses=output.losses * weights)


def term_weights(term: Term, index: PreferenceIndex, completions: Completions) -> Tensor | None:
    """Return the weight of each unit that a term looks at; (B,), None where all count as one.

    It is that of the data, times WPO's if the term weighs pairs.
    """
    weights = index.weights_of(term.loss.data_kind)
    if not term.options.use_weighting:
        return weights
    assert completions.log_collisions is not None  # whoever scores for such a term takes them
    usual = wpo_weights(
        completions.logps,
        completions.log_collisions,
        completions.lengths,
        index.chosen,
        index.rejected,
    )
    return usual if weights is None else usual * weights


def _joined_rankings(
    outputs: Sequence[LossOutput], index: PreferenceIndex, completions: Completions
) -> LossOutput:
    """Return the losses of rankings of all sizes, and their rewards as those of pairs."""
    logps = completions.logps
    if not outputs:
        return LossOutput((logps * 0)[:0])
    rewards = torch.zeros_like(logps.detach())
    for output, ranking in zip(outputs, index.rankings, strict=True):
        if output.rewards is None:
            return LossOutput(torch.cat([one.losses for one in outputs]))
        rewards[ranking.index.reshape(-1)] = output.rewards.reshape(-1).to(rewards.dtype)
    return LossOutput(
        torch.cat([output.losses for output in outputs]),
        rewards.index_select(0, index.chosen),
        rewards.index_select(0, index.rejected),
    )
