"""Mismatched completions for KTO's KL estimate: a derangement fixed by construction.

Every completion is given a completion of another prompt: that of the row before it, the first row
takes from the last. A row of the same prompt, or with the very same completion, is passed over for
the one before it. Nothing is drawn, so nothing depends on batch size, shuffling or seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Donors", "find_donors"]

Ints = NDArray[np.int64]


class Donors(NamedTuple):
    """Where the mismatched completion of each of N completions is.

    Attributes:
        rows: Its row; (N,). -1 where there is none.
        places: Which of that row's completions it is; (N,).
        skipped: How many of the N could not be taken from the row before.
    """

    rows: Ints
    places: Ints
    skipped: int


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
        column = completions[starts + place % counts]  # what each row would give at this place
        takers = np.flatnonzero(counts > place)
        donors = (takers - 1) % len(counts)
        clash = (prompts[donors] == prompts[takers]) | (column[donors] == column[takers])
        skipped += int(clash.sum())
        runs = (prompt_runs, _run_lengths(column))
        for index in np.flatnonzero(clash):
            donors[index] = _search(int(takers[index]), prompts, column, runs)
        rows[starts[takers] + place] = donors
        places[starts[takers] + place] = np.where(donors < 0, 0, place % counts[donors])
    return Donors(rows, places, skipped)


def _search(row: int, prompts: Ints, column: Ints, runs: tuple[Ints, Ints]) -> int:
    """Return the nearest row before this one, around the end, that may give to it, or -1."""
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
    """Return how many equal values end at each place, around the end; (n,), at most n."""
    total = len(values)
    twice = np.concatenate([values, values])
    index = np.arange(2 * total)
    begins = np.flatnonzero(np.append(True, twice[1:] != twice[:-1]))
    last_begin = begins[np.searchsorted(begins, index, side="right") - 1]
    return np.minimum(index - last_begin + 1, total)[total:]
