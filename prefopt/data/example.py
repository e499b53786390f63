"""The canonical example, a prompt with N completions, and how labels and rankings are read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefopt.data.errors import DataError
from prefopt.data.names import column_hint

__all__ = ["Cells", "Form", "Judgement", "Kind", "PreferenceExample", "read_label", "read_ranking"]

Kind = Literal["paired", "unpaired", "ranked"]
Form = Literal["text", "messages", "ids"]


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt with its completions, as the row gives them.

    Attributes:
        kind: Paired (chosen first), unpaired (one completion), or ranked (best first).
        form: Whether prompt and completions are text, messages or token ids.
        prompt: The prompt.
        completions: The completions, in the same form.
        desirable: Whether each completion is wanted; empty if ranked.
        ranks: Rank of each completion, 0 is best, ties share; empty if unpaired.
        scores: Score of each completion, if ranked with scores.
        masks: Which tokens of each completion count, if given; for token ids only.
        kl_completions: Mismatched completion of each completion, if given; for token ids only.
        tools: Tool schemas for the chat template.
        options: Further arguments of the chat template.
        unusable: Why there is nothing to learn from the row; None if there is.
        repeated: Whether its completions, plain text, began with the prompt, now removed from them.
        unread: Columns that other rows may be read from, but not this one.
    """

    kind: Kind
    form: Form
    prompt: Any
    completions: list[Any]
    desirable: list[bool] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    masks: list[list[bool]] | None = None
    kl_completions: list[list[int]] | None = None
    tools: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    unusable: str | None = None
    repeated: bool = False
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What a row says of its completions: as ``PreferenceExample``, all in the order of ``order``.

    ``order`` holds the indices of the completions as the row gives them, best first.
    """

    kind: Kind
    order: Sequence[int]
    desirable: list[bool] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    unusable: str | None = None

    @classmethod
    def of_pair(cls) -> "Judgement":
        """Return that of a pair, whose chosen completion comes first."""
        return cls("paired", (0, 1), [True, False], [0, 1])

    @classmethod
    def of_label(cls, label: bool) -> "Judgement":
        """Return that of an unpaired row with this label."""
        return cls("unpaired", (0,), [label])


@dataclass(frozen=True)
class Cells:
    """The values of one row that are not null, its columns, and its number in the data set.

    ``vocabulary`` is how many token ids there are, None for as many as 32 bits hold; ``read`` holds
    the columns whose values were asked for.
    """

    values: Mapping[str, Any]
    columns: Sequence[str]
    number: int
    vocabulary: int | None = None
    read: set[str] = field(default_factory=set)

    def __contains__(self, column: str) -> bool:
        return column in self.values

    def get(self, column: str) -> Any:
        """Return the value of the column, None if it is null or missing."""
        self.read.add(column)
        return self.values.get(column)

    def need(self, column: str, why: str) -> Any:
        """Return the value of the column, which must be there."""
        if column in self.values:
            return self.get(column)
        if column in self.columns:
            raise self.wrong(column, f"is null; {why}")
        left = [name for name in self.values if name not in self.read]
        there_are = (
            f"the columns are {', '.join(self.columns)}" if self.columns else "there is none"
        )
        hint = column_hint(column, left)
        raise self.wrong(column, f"no such column; {why}{hint}; {there_are}")

    def wrong(self, column: str | None, problem: str) -> DataError:
        """Return the error that the column of this row is wrong."""
        return DataError(problem, self.number, column)


def read_label(row: Cells) -> bool:
    """Return whether the completion of an unpaired row is desirable."""
    label = row.need("label", "an unpaired row needs True, False, 1 or 0")
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise row.wrong(
            "label",
            f"needs True, False, 1 or 0, got {label!r}; map what the data has to these first, and "
            "leave out rows that are neither",
        )
    return bool(label)


def read_ranking(row: Cells, count: int, *, ranked_as_given: bool) -> Judgement:
    """Return the order of a ranked row's completions, by its ranks, else its scores.

    Raises:
        DataError: If ranks or scores are no finite numbers, one a completion, or are missing.
    """
    scores = _read_numbers(row, "scores", count) if "scores" in row else []
    if "ranks" in row:
        keys = _read_numbers(row, "ranks", count)
    elif scores:
        keys = [-score for score in scores]
    elif ranked_as_given:
        keys = list(range(count))
    else:
        raise row.wrong(
            "ranks",
            "no such column; completions need 'ranks' (0 is best) or 'scores' (more is better)",
        )
    rank_of = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    order = sorted(range(count), key=lambda place: keys[place])
    unusable = "all completions share one rank" if len(rank_of) == 1 else None
    return Judgement(
        "ranked",
        order,
        ranks=[rank_of[keys[place]] for place in order],
        scores=[scores[place] for place in order] if scores else [],
        unusable="one completion is no ranking" if count == 1 else unusable,
    )


def _read_numbers(row: Cells, column: str, count: int) -> list[float]:
    numbers = row.get(column)
    if not isinstance(numbers, list) or len(numbers) != count:
        found = f"{len(numbers)} of them" if isinstance(numbers, list) else type(numbers).__name__
        raise row.wrong(column, f"needs a list of {count} numbers, one a completion, got {found}")
    for place, number in enumerate(numbers):
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise row.wrong(column, f"number {place} is {number!r}; it must be a finite number")
    return numbers
