"""Mismatched completions for KTO's KL estimate: a derangement fixed by construction.

Every completion gets a completion of another prompt: that of the row before it (of the last row
for the first). If that row has the same prompt or the same completion, the one before it is used.
Nothing is drawn at random, so nothing depends on batch size, shuffling or seed. A completion for
which no row fits gets none and has no part in the estimate, which is 0 where nothing has a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features
from datasets.fingerprint import Hasher

from prefopt.data.prepared import OPTIONAL, VERSION, Ints, list_lengths, read_chunks

__all__ = ["Donors", "StreamMismatch", "add_mismatched", "find_donors"]

REMEMBERED_ROWS = 32  # of a stream, each of another prompt

logger = getLogger(__name__)


class Donors(NamedTuple):
    """Where the mismatched completion of each of N completions is.

    Attributes:
        rows: Its row; (N,). -1 where there is none.
        places: Which of that row's completions it is; (N,).
        skipped: How many of the N were taken from another row than the one before.
    """

    rows: Ints
    places: Ints
    skipped: int

    @property
    def lacking(self) -> int:
        """How many of the N have none."""
        return int((self.rows < 0).sum())


def find_donors(
    prompts: Sequence[int] | Ints, completions: Sequence[int] | Ints, counts: Sequence[int] | Ints
) -> Donors:
    """Find a mismatched completion for every completion, going back from the row before it.

    The j-th completion of a row takes the j-th of another (modulo their number).

    Args:
        prompts: A number for each of n rows, equal where the prompts are; (n,).
        completions: A number for each completion, row after row, equal where completions are; (N,).
        counts: Number of completions of each row, at least 1; (n,).

    Examples:
        >>> find_donors([1, 2, 2], [10, 20, 30], [1, 1, 1]).rows.tolist()
        [2, 0, 0]
    """
    prompts, completions = np.asarray(prompts), np.asarray(completions)
    counts = np.asarray(counts, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    rows = np.full(len(completions), -1, dtype=np.int64)
    places = np.zeros(len(completions), dtype=np.int64)
    prompt_runs = _run_lengths(prompts)
    skipped = 0
    for place in range(int(counts.max(initial=0))):
        column = completions[starts + place % counts]  # each row's completion number `place`
        receivers = np.flatnonzero(counts > place)
        donors = (receivers - 1) % len(counts)
        clash = (prompts[donors] == prompts[receivers]) | (column[donors] == column[receivers])
        runs = (prompt_runs, _run_lengths(column))
        for index in np.flatnonzero(clash):
            donors[index] = _search(int(receivers[index]), prompts, column, runs)
        skipped += int((donors[clash] >= 0).sum())
        rows[starts[receivers] + place] = donors
        places[starts[receivers] + place] = np.where(donors < 0, 0, place % counts[donors])
    return Donors(rows, places, skipped)


def _search(row: int, prompts: Ints, column: Ints, runs: tuple[Ints, Ints]) -> int:
    """Return the nearest earlier row with another prompt and completion, or -1; cyclic."""
    prompt_runs, column_runs = runs
    total, back = len(prompts), 1
    while back < total:
        donor = (row - back) % total
        if prompts[donor] == prompts[row]:
            back += int(prompt_runs[donor])
        elif column[donor] == column[row]:
            back += int(column_runs[donor])
        else:
            return donor
    return -1


def _run_lengths(values: Ints) -> Ints:
    """Return how many equal values end at each place, counted cyclically; (n,), at most n."""
    total = len(values)
    twice = np.concatenate([values, values])
    index = np.arange(2 * total)
    begins = np.flatnonzero(np.append(True, twice[1:] != twice[:-1]))
    last_begin = begins[np.searchsorted(begins, index, side="right") - 1]
    lengths: Ints = np.minimum(index - last_begin + 1, total)[total:]
    return lengths


def add_mismatched(
    dataset: Dataset, max_length: int | None, num_proc: int | None = None
) -> tuple[Dataset, Donors]:
    """Add ``kl_completion_ids`` to prepared rows: a mismatched completion for each completion.

    It is empty for a completion for which there is none.

    Returns:
        The rows, and where the mismatched completions are from.
    """
    chunks = list(read_chunks(dataset, "_keys"))
    lengths = np.concatenate([list_lengths(chunk) for chunk in chunks])
    keys = np.concatenate([np.asarray(chunk.flatten()) for chunk in chunks])
    donors, counts = _donors_of(lengths, keys)
    features = Features({**dataset.features, "kl_completion_ids": OPTIONAL["kl_completion_ids"]})
    mapped = dataset.map(
        _mismatched_batch,
        batched=True,
        with_indices=True,
        input_columns=["prompt_ids"],
        features=features,
        fn_kwargs={
            "source": dataset.select_columns(["completion_ids"]),
            "donors": donors,
            "starts": np.append(0, np.cumsum(counts)),
            "max_length": max_length,
        },
        num_proc=min(num_proc, len(dataset)) if num_proc else None,
        # All that decides the result: the donors follow from the rows.
        new_fingerprint=Hasher.hash((dataset._fingerprint, "mismatched", max_length, VERSION)),
        desc="Adding mismatched completions",
    )
    return mapped, donors


def _donors_of(lengths: Ints, keys: Ints) -> tuple[Donors, Ints]:
    """Return donors and number of completions of rows, from the prompt's and completions' keys."""
    starts = np.cumsum(lengths) - lengths
    donors = find_donors(keys[starts], np.delete(keys, starts), lengths - 1)
    return donors, lengths - 1


def _mismatched_batch(
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    *,
    source: Dataset,
    donors: Donors,
    starts: Ints,
    max_length: int | None,
) -> dict[str, list[Any]]:
    """Return the mismatched completions of a batch of rows; the function that ``datasets`` maps."""
    slots = [range(starts[number], starts[number + 1]) for number in numbers]
    wanted = sorted({int(donors.rows[slot]) for row in slots for slot in row} - {-1})
    found = source[wanted]["completion_ids"] if wanted else []
    completions_of = dict(zip(wanted, found, strict=True))
    completions_of[-1] = [[]]  # of none, whose place is 0
    mismatched = [
        [completions_of[int(donors.rows[s])][donors.places[s]] for s in row] for row in slots
    ]
    return {"kl_completion_ids": _cut_to_room(prompts, mismatched, max_length)}


def _cut_to_room(
    prompts: Sequence[Sequence[int]], completions: list[Any], max_length: int | None
) -> list[list[Any]]:
    """Cut each row's mismatched completions to what its prompt leaves of ``max_length``."""
    if max_length is None:
        return completions
    return [
        [ids[: max_length - len(prompt)] for ids in row]
        for prompt, row in zip(prompts, completions, strict=True)
    ]


@dataclass
class StreamMismatch:
    """Adds mismatched completions to the rows of a stream.

    A row gets them from rows before it, the first rows of the stream from the end of its first
    batch; the first that gets none is warned of. ``before`` holds the keys and completions of those
    rows.
    """

    max_length: int | None
    name: str
    before: list[tuple[list[int], list[list[int]]]] = field(default_factory=list)
    warned: bool = False

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], numbers: Sequence[int]
    ) -> dict[str, list[Any]]:
        """Return the mismatched completions of a batch of rows, those with numbers ascending."""
        if numbers[0] == 0:
            self.before = []
        rows = self.before + list(zip(batch["_keys"], batch["completion_ids"], strict=True))
        keys = np.asarray([key for row_keys, _ in rows for key in row_keys], dtype=np.int64)
        donors, counts = _donors_of(np.asarray([len(row_keys) for row_keys, _ in rows]), keys)
        ends = np.cumsum(counts)
        mismatched = [
            [self._mismatched(rows, donors, slot) for slot in range(end - count, end)]
            for end, count in zip(ends[len(self.before) :], counts[len(self.before) :], strict=True)
        ]
        self._warn(numbers, mismatched)
        last_of_prompt: dict[int, tuple[list[int], list[list[int]]]] = {}
        for row_keys, completions in reversed(rows):
            last_of_prompt.setdefault(row_keys[0], (row_keys, completions))
        self.before = list(last_of_prompt.values())[:REMEMBERED_ROWS][::-1]
        return {"kl_completion_ids": _cut_to_room(batch["prompt_ids"], mismatched, self.max_length)}

    @staticmethod
    def _mismatched(
        rows: Sequence[tuple[list[int], list[list[int]]]], donors: Donors, slot: int
    ) -> list[int]:
        donor = donors.rows[slot]
        return [] if donor < 0 else rows[donor][1][donors.places[slot]]

    def _warn(self, numbers: Sequence[int], mismatched: Sequence[Sequence[Sequence[int]]]) -> None:
        """Warn of the first row one of whose completions gets none."""
        pairs = zip(numbers, mismatched, strict=True)
        row = next((number for number, found in pairs if not all(found)), None)
        if row is not None and not self.warned:
            self.warned = True
            logger.warning(
                "%s data: row %d has no part in KTO's KL estimate: no row near it has another "
                "prompt with another completion (later such rows are not reported)",
                self.name,
                row,
            )
