"""What each loss takes of a scored batch.

A batch holds N completions; a ``PreferenceIndex`` says which of them are compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefopt.losses import LossOutput
from prefopt.losses.vocabulary import SCALARS, InputSpec, specs_of
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
    """Return what the loss of a term takes of a batch, by name, its options applied.

    The index is of the rows that the term looks at. A ranked loss is given inputs for each number
    of completions that is ranked, any other once.
    """
    return [
        transformed(term.options, term.loss, term.hyperparameters, inputs)
        for inputs in _gathered(term, term.inputs, index, completions)
    ]


@dataclass(frozen=True)
class _Compared:
    """Completions that a loss compares.

    Attributes:
        completions: What is known of all completions of the batch.
        index: What the data say of those that are compared.
        sides: Their numbers, by side; (B,), or (B, K) of rankings.
        scores: Scores of rankings; (B, K).
    """

    completions: Completions
    index: PreferenceIndex
    sides: Mapping[str, Tensor]
    scores: Tensor | None = None

    def pick(self, side: str, values: Tensor | None) -> Tensor | None:
        """Return the values of the completions of a side; None if there are none."""
        if values is None:
            return None
        numbers = self.sides[side]
        return values.index_select(0, numbers.reshape(-1)).view(numbers.shape)


def _compared(data_kind: str, index: PreferenceIndex, completions: Completions) -> list[_Compared]:
    """Return what a loss on data of a kind compares: of rankings, those of one size at a time."""
    if data_kind == "ranked":
        return [
            _Compared(completions, index, {"ranking": ranking.index}, ranking.scores)
            for ranking in index.rankings
        ]
    sides = {
        "paired": {"chosen": index.chosen, "rejected": index.rejected},
        "unpaired": {"completion": index.unpaired},
        "preferred": {"chosen": index.preferred},
    }
    return [_Compared(completions, index, sides[data_kind])]


def _gathered(
    term: Term, names: Sequence[str], index: PreferenceIndex, completions: Completions
) -> list[dict[str, Tensor]]:
    """Return the inputs of these names, as far as they are known."""
    return [
        {
            spec.name: value
            for spec in specs_of(names)
            if (value := _computed(spec, compared)) is not None
        }
        for compared in _compared(term.loss.data_kind, index, completions)
    ]


def _computed(spec: InputSpec, of: _Compared) -> Tensor | None:
    """Return an input of a loss; None if what it is made of is not known."""
    if spec.scalar:
        return of.completions.scalars.get(spec.name)
    return _COMPUTED[spec.quantity](spec, of)


def _logps(spec: InputSpec, of: _Compared) -> Tensor | None:
    known = of.completions
    return of.pick(spec.side, known.ref_logps if spec.of_reference else known.logps)


def _head_logps(spec: InputSpec, of: _Compared) -> Tensor | None:
    """Return the log-probs of as many first tokens as the shorter completion of a pair has."""
    known = of.completions
    per_token = known.ref_per_token_logps if spec.of_reference else known.per_token_logps
    if per_token is None:
        return None
    lengths = known.lengths
    shorter = torch.minimum(lengths[of.sides["chosen"]], lengths[of.sides["rejected"]])
    starts = (lengths.cumsum(0) - lengths)[of.sides[spec.side]]
    # In float64: a difference of sums over the whole batch keeps what one completion adds.
    sums = torch.nn.functional.pad(per_token.double().cumsum(0), (1, 0))
    return (sums[starts + shorter] - sums[starts]).to(per_token.dtype)


def _or_default(column: Tensor | None, of: _Compared, default: float) -> Tensor:
    """Return what the data say of pairs, or the default for each where they do not."""
    chosen = of.sides["chosen"]
    return torch.full(chosen.shape, default, device=chosen.device) if column is None else column


def _win_rates(spec: InputSpec, of: _Compared) -> Tensor:
    chosen = spec.side == "chosen"
    rates = of.index.chosen_win_rates if chosen else of.index.rejected_win_rates
    if rates is not None:
        return rates
    probabilities = _or_default(of.index.preference_probabilities, of, 1.0)
    return probabilities if chosen else 1 - probabilities


# How the inputs of each quantity are computed.
_COMPUTED: dict[str, Callable[[InputSpec, _Compared], Tensor | None]] = {
    "logps": _logps,
    "head_logps": _head_logps,
    "lengths": lambda spec, of: of.pick(spec.side, of.completions.lengths),
    "divergences": lambda spec, of: of.pick(spec.side, of.completions.divergences),
    "margins": lambda spec, of: _or_default(of.index.margins, of, 0.0),
    "preference_probabilities": lambda spec, of: _or_default(
        of.index.preference_probabilities, of, 1.0
    ),
    "win_rates": _win_rates,
    "label": lambda spec, of: of.index.labels,
    "scores": lambda spec, of: of.scores,
}


def term_counts(term: Term, index: PreferenceIndex, lengths: Tensor) -> Tensor:
    """Return how many units, (), a term's mean is taken over in this batch, before any forward.

    Units are pairs, completions, rankings or tokens, as the loss counts; ``lengths`` are (N,).
    """
    # Log-probs are not known yet and not looked at.
    nothing = lengths.new_zeros(lengths.shape).float()
    unknown = Completions(
        nothing, lengths, nothing, scalars={name: nothing.sum() for name in SCALARS}
    )
    counts = [
        term.loss.unit_counts(inputs, term.hyperparameters).sum()
        for inputs in _gathered(term, term.loss.inputs, index.of_rows(term.rows), unknown)
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
    assert completions.log_collisions is not None  # `Objective.needs_collisions` says so
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
