"""What a judge is, and how it is asked.

One that compares two answers sees each pair in both orders, so that their places count for nothing;
a verdict that cannot be read is no tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from prefopt.evaluation.intervals import Estimate, wilson_interval
from prefopt.evaluation.prompts import Prompt, as_example

__all__ = ["Judge", "Judgements", "PairJudge", "PointJudge", "RememberingJudge", "judged"]


@runtime_checkable
class PointJudge(Protocol):
    """Gives every answer a number by itself."""

    name: str

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return a finite number for each completion, more for a better one."""


@runtime_checkable
class PairJudge(Protocol):
    """Says which of two answers is better."""

    name: str

    def preferences(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[float | None]:
        """Return 1 where the first completion is better, 0 for the second, 0.5 for a tie.

        None is no verdict: one that cannot be read, or no answer.
        """


Judge = PointJudge | PairJudge


class RememberingJudge:
    """Asks a judge of single answers about each answer once.

    Args:
        judge: The judge.
    """

    def __init__(self, judge: PointJudge) -> None:
        self.name = judge.name
        self._judge = judge
        self._known: dict[tuple[str, str], float] = {}

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the score of each completion after its prompt."""
        asked = [repr(as_example(prompt)) for prompt in prompts]
        keys = list(zip(asked, completions, strict=True))
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        if new:
            given = [prompts[place] for place in new.values()]
            found = self._judge.scores(given, [completions[place] for place in new.values()])
            self._known |= dict(zip(new, found, strict=True))
        return [self._known[key] for key in keys]


@dataclass(frozen=True)
class Judgements:
    """What a judge says of N pairs of answers, ours and others.

    Attributes:
        preferences: 1 where ours is preferred, 0 where the other is, 0.5 for a tie; the mean of
            both orders. None where one of the orders has no verdict.
        without_verdict: How many pairs have none.
        position_bias: Share of the pairs with a verdict of which the same place won in both orders,
            whatever stood there; None for a judge that sees one answer at a time.
        favours_first: How much more often than the second place the first one won, from -1 (the
            second always) to 1; None likewise.
        scores: Of ours; None for a judge of pairs.
        other_scores: Of the others; None for a judge of pairs.
    """

    preferences: tuple[float | None, ...]
    without_verdict: int = 0
    position_bias: Estimate | None = None
    favours_first: float | None = None
    scores: tuple[float, ...] | None = None
    other_scores: tuple[float, ...] | None = None


def judged(
    judge: Judge,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    other_completions: Sequence[str],
) -> Judgements:
    """Return which answers a judge prefers; a judge of pairs is asked in both orders.

    Args:
        judge: Scores answers, or compares two.
        prompts: The prompt of each pair.
        completions: Our answers.
        other_completions: The others' answers to the same prompts.

    Raises:
        ValueError: If the numbers differ, there are none, the judge returns another number of
            values or one that is none, or no verdict at all.
    """
    counts = {len(prompts), len(completions), len(other_completions)}
    if counts in ({0}, set()) or len(counts) != 1:
        raise ValueError(
            f"a judge needs as many prompts as answers of both sides, at least one; got "
            f"{len(prompts)}, {len(completions)} and {len(other_completions)}"
        )
    if isinstance(judge, PointJudge):
        return _by_scores(judge, prompts, completions, other_completions)
    return _in_both_orders(judge, prompts, completions, other_completions)


def _by_scores(
    judge: PointJudge, prompts: Sequence[Prompt], ours: Sequence[str], others: Sequence[str]
) -> Judgements:
    """Return judgements by the scores of one call, so that equal texts get equal scores."""
    found = judge.scores([*prompts, *prompts], [*ours, *others])
    scores, other_scores = tuple(found[: len(ours)]), tuple(found[len(ours) :])
    if len(scores) != len(other_scores):
        raise ValueError(f"{judge.name} returned {len(found)} scores for {2 * len(ours)} answers")
    wins = tuple(_compared(*both) for both in zip(scores, other_scores, strict=True))
    return Judgements(wins, scores=scores, other_scores=other_scores)


def _compared(score: float, other: float) -> float:
    return 0.5 if score == other else float(score > other)


def _in_both_orders(
    judge: PairJudge, prompts: Sequence[Prompt], ours: Sequence[str], others: Sequence[str]
) -> Judgements:
    found = judge.preferences([*prompts, *prompts], [*ours, *others], [*others, *ours])
    if len(found) != 2 * len(ours):
        raise ValueError(f"{judge.name} returned {len(found)} verdicts for {2 * len(ours)} pairs")
    wrong = [value for value in found if value is not None and not 0 <= value <= 1]
    if wrong:
        raise ValueError(
            f"{judge.name} returned {wrong[0]!r}: a verdict is 1 (the first is better), 0, 0.5 for "
            "a tie, or None for no verdict"
        )
    forward, backward = found[: len(ours)], found[len(ours) :]
    both = [
        (first, last)
        for first, last in zip(forward, backward, strict=True)
        if first is not None and last is not None
    ]
    if not both:
        raise ValueError(f"{judge.name} gave no verdict on any of {len(ours)} pairs")
    verdicts = torch.tensor(both, dtype=torch.float64)
    same_place = (verdicts == 1).all(1) | (verdicts == 0).all(1)
    return Judgements(
        preferences=tuple(map(_mean_of_orders, forward, backward)),
        without_verdict=len(ours) - len(both),
        position_bias=wilson_interval(same_place.sum().item(), len(both)),
        favours_first=(2 * verdicts - 1).mean().item(),
    )


def _mean_of_orders(forward: float | None, backward: float | None) -> float | None:
    """Return the preference for ours, which stands first in one order and second in the other."""
    if forward is None or backward is None:
        return None
    return (forward + 1 - backward) / 2
