"""Which rows each process gets of each optimiser step: those of one process, evenly by tokens.

A step is the same set of rows however many processes share it: so many consecutive rows of the
epoch's order as all processes take together. Within it rows are dealt out so that every process has
about as many tokens in every pass. No row is taken twice to fill a batch up: where rows run out, a
process takes part with an empty batch, so that all of them make the same number of passes.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from datasets import Dataset
from torch.utils.data import IterableDataset, Sampler

from prefopt.data.prepared import Ints, Row, list_lengths, read_chunks

__all__ = ["EvaluationShare", "StepShare", "StepStream", "Steps", "deal", "row_tokens"]


@dataclass(frozen=True)
class Steps:
    """How an optimiser step is cut.

    Attributes:
        rows: Most rows of one process in one pass.
        processes: How many share a step.
        passes: Passes that make a step (gradient accumulation).
    """

    rows: int
    processes: int = 1
    passes: int = 1

    @property
    def rows_of_pass(self) -> int:
        """Rows of one pass of all processes."""
        return self.rows * self.processes

    @property
    def rows_of_step(self) -> int:
        """Rows of an optimiser step."""
        return self.rows_of_pass * self.passes


def deal(sizes: Sequence[int], shares: int, most: int) -> list[list[int]]:
    """Deal items out into shares of about the same size.

    The largest first, each to the share that is smallest by then and has room.

    Args:
        sizes: Of the items.
        shares: How many to make.
        most: Items that a share can hold; together at least as many as there are.

    Returns:
        Places of the items of each share, in ascending order; the largest share first.

    Examples:
        >>> deal([9, 1, 1, 8], 2, 2)
        [[0, 2], [1, 3]]
        >>> deal([5, 5], 3, 1)
        [[0], [1], []]
    """
    filled = [(0, number) for number in range(shares)]
    places: list[list[int]] = [[] for _ in range(shares)]
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        size, number = heapq.heappop(filled)
        places[number].append(place)
        if len(places[number]) < most:
            heapq.heappush(filled, (size + sizes[place], number))
    totals = [sum(sizes[place] for place in share) for share in places]
    order = sorted(range(shares), key=lambda number: -totals[number])
    return [sorted(places[number]) for number in order]


class StepShare(Sampler[list[int]]):
    """The batches of one process: its share of each pass of each step.

    Args:
        sampler: The order of the rows, the same in all processes.
        sizes: Tokens of each row of the data; (n,). None to count rows.
        steps: How a step is cut.
        rank: Number of the process.
        drop_last: Whether rows that do not fill a pass of all processes are left out.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        sizes: Ints | None,
        steps: Steps,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        # Under this name accelerate looks for what is told the epoch.
        self.sampler = sampler
        self._sizes = sizes
        self._steps = steps
        self._rank = rank
        self._drop_last = drop_last

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be that of an epoch."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        rows = len(self.sampler)  # type: ignore[arg-type] # those of map-style data have a length
        whole, rest = divmod(rows, self._steps.rows_of_pass)
        return whole + (rest > 0 and not self._drop_last)

    def rows_of(self, steps: int) -> int:
        """Return how many rows so many optimiser steps take, from the first epoch's on."""
        of_epoch = len(self.sampler)  # type: ignore[arg-type] # those of map-style data have one
        if self._drop_last:
            of_epoch = len(self) * self._steps.rows_of_pass
        epochs, rest = divmod(steps, -(-len(self) // self._steps.passes))
        return epochs * of_epoch + min(rest * self._steps.rows_of_step, of_epoch)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        if self._drop_last:
            order = order[: len(self) * self._steps.rows_of_pass]
        for start in range(0, len(order), self._steps.rows_of_step):
            rows = order[start : start + self._steps.rows_of_step]
            sizes = [1] * len(rows) if self._sizes is None else self._sizes[rows].tolist()
            for share in shares_of(sizes, self._steps, self._rank):
                yield [rows[place] for place in share]


def shares_of(sizes: Sequence[int], steps: Steps, rank: int) -> Iterator[list[int]]:
    """Yield the places of the rows that a process gets in each pass of one step.

    Args:
        sizes: Tokens of the rows of the step; at most ``steps.rows_of_step``.
        steps: How it is cut.
        rank: Number of the process.
    """
    passes = -(-len(sizes) // steps.rows_of_pass)
    dealt = deal(sizes, passes * steps.processes, steps.rows)
    totals = [0] * steps.processes
    for number in range(passes):
        together = dealt[number * steps.processes : (number + 1) * steps.processes]
        # They come largest first: the largest for the process that had least until now.
        waiting = sorted(range(steps.processes), key=totals.__getitem__)
        for process, share in zip(waiting, together, strict=True):
            totals[process] += sum(sizes[place] for place in share)
            if process == rank:
                yield share


class EvaluationShare(Sampler[list[int]]):
    """Every so many of the rows, in their order, in as many batches in every process.

    Args:
        count: Rows of the data.
        steps: How they are cut.
        rank: Number of the process.
    """

    def __init__(self, count: int, steps: Steps, rank: int = 0) -> None:
        self._count = count
        self._steps = steps
        self._rank = rank

    def __len__(self) -> int:
        return -(-self._count // self._steps.rows_of_pass)

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(len(self)):
            start = number * self._steps.rows_of_pass
            stop = min(start + self._steps.rows_of_pass, self._count)
            yield list(range(start + self._rank, stop, self._steps.processes))


class StepStream(IterableDataset[list[Row]]):
    """The batches of one process of data that are read as they come.

    Every process reads all rows, since only then are they those that one process would see.

    Args:
        dataset: The rows.
        steps: How they are cut; rows are dealt out within a pass.
        rank: Number of the process.
        in_turn: Whether each process gets every so many of the rows, as evaluation needs it.
        drop_last: Whether rows that do not fill a pass of all processes are left out.
    """

    def __init__(
        self,
        dataset: Iterable[Row],
        steps: Steps,
        rank: int = 0,
        in_turn: bool = False,
        drop_last: bool = False,
    ) -> None:
        self._dataset = dataset
        self._steps = steps
        self._rank = rank
        self._in_turn = in_turn
        self._drop_last = drop_last

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be that of an epoch."""
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Row]]:
        rows = iter(self._dataset)
        while together := list(islice(rows, self._steps.rows_of_pass)):
            if self._drop_last and len(together) < self._steps.rows_of_pass:
                return
            if self._in_turn:
                yield together[self._rank :: self._steps.processes]
                continue
            for share in shares_of(list(map(tokens_of, together)), self._steps, self._rank):
                yield [together[place] for place in share]


def tokens_of(row: Row) -> int:
    """Return about how many tokens a row takes: its prompt once, and its completions."""
    return len(row["prompt_ids"]) + sum(map(len, row["completion_ids"]))


def row_tokens(dataset: Dataset, shared: bool = True, with_kl: bool = False) -> Ints:
    """Return about how many tokens each prepared row takes in a pass; (n,).

    Args:
        dataset: Prepared rows.
        shared: Whether completions share their prompt.
        with_kl: Whether mismatched completions are scored too. Without a backward pass a token
            costs a third.
    """
    prompts = _joined([list_lengths(chunk) for chunk in read_chunks(dataset, "prompt_ids")])
    counts, tokens = _completion_lengths(dataset, "completion_ids")
    sizes = tokens + prompts * (1 if shared else counts)
    if with_kl:
        sizes += _completion_lengths(dataset, "kl_completion_ids")[1] // 3
    return sizes


def _completion_lengths(dataset: Dataset, name: str) -> tuple[Ints, Ints]:
    """Return how many completions each row has, and how many tokens these have together."""
    counts, tokens = [], []
    for chunk in read_chunks(dataset, name):
        of_rows = np.nan_to_num(list_lengths(chunk)).astype(np.int64)
        rows = np.repeat(np.arange(len(of_rows)), of_rows)
        lengths = list_lengths(chunk.flatten())
        counts.append(of_rows)
        tokens.append(np.bincount(rows, lengths, len(of_rows)).astype(np.int64))
    return _joined(counts), _joined(tokens)


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
