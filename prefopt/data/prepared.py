"""Prepared rows read as token ids, many at a time and without a Python loop over tokens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from prefopt.engine.layout import Example

Ints = NDArray[np.int64]


def examples_of(rows: Iterable[Mapping[str, Any]], with_kl: bool) -> Iterator[Example]:
    """Return the prompts and completions of prepared rows, those of KTO's KL estimate included."""
    for row in rows:
        prompt = np.asarray(row["prompt_ids"], dtype=np.int64)
        completions = list(row["completion_ids"])
        if with_kl:
            completions += row["kl_completion_ids"]
        yield Example(prompt, [np.asarray(ids, dtype=np.int64) for ids in completions])


def read_examples(
    dataset: Dataset, with_kl: bool, rows: Sequence[int] | None = None, batch_size: int = 1000
) -> Iterator[Example]:
    """Return what ``examples_of`` does, of some rows of a map-style dataset or of all.

    Args:
        dataset: Prepared rows.
        with_kl: Whether KTO's mismatched completions are among the completions.
        rows: Their numbers; None for all.
        batch_size: Rows that are read at a time.
    """
    columns = ["prompt_ids", "completion_ids"] + (["kl_completion_ids"] if with_kl else [])
    plain = dataset.select_columns(columns).with_format("arrow")
    if rows is not None:
        yield from _examples(plain[list(rows)], columns)
        return
    for table in plain.iter(batch_size):
        yield from _examples(table, columns)


def _examples(table: pa.Table, columns: Sequence[str]) -> Iterator[Example]:
    prompt, *completions = (_joined(table[name]) for name in columns)
    lists = [list(_lists_of_lists(column)) for column in completions]
    for row, prompt_ids in enumerate(_lists(prompt)):
        yield Example(prompt_ids, [ids for column in lists for ids in column[row]])


def _joined(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined


def _lists_of_lists(array: pa.Array) -> Iterator[list[Ints]]:
    inner = list(_lists(array.flatten()))
    ends = np.cumsum(np.asarray(array.value_lengths().fill_null(0)))
    starts = np.concatenate([[0], ends[:-1]])
    for start, end in zip(starts, ends, strict=True):
        yield inner[start:end]


def _lists(array: pa.Array) -> Iterator[Ints]:
    """Yield each list of an array of lists of integers."""
    flat = np.asarray(array.flatten(), dtype=np.int64)
    ends = np.cumsum(np.asarray(array.value_lengths().fill_null(0)))
    yield from np.split(flat, ends)[:-1]
