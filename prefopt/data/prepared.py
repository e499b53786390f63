"""Prepared rows: their columns, how they are read many at a time, and the key of a completion."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, List, Value
from numpy.typing import NDArray

from prefopt.engine.layout import Example

__all__ = [
    "COLUMNS",
    "FACTS",
    "KEY_BYTES",
    "OPTIONAL",
    "OUTPUTS",
    "PREPARED_COLUMNS",
    "VERSION",
    "Ints",
    "Row",
    "completion_key",
    "completion_keys",
    "examples_of",
    "is_stream",
    "list_lengths",
    "read_chunks",
    "read_examples",
]

# Part of the key under which `datasets` caches prepared rows: raise it when they would come out
# differently, since `datasets` does not look into the functions of an installed package.
VERSION = 6
IDS = List(Value("int32"))
OUTPUTS = {
    "kind": Value("string"),
    "prompt_ids": IDS,
    "completion_ids": List(IDS),
    "desirable": List(Value("bool")),
    "ranks": List(Value("int32")),
    "prefopt_row": Value("int64"),  # the number of the row in the data as they were given
}
OPTIONAL = {
    "completion_masks": List(List(Value("bool"))),
    "scores": List(Value("float64")),
    "kl_completion_ids": List(IDS),
    "prefopt_dataset": Value("string"),  # which of several datasets the row is of
}
# Facts about each row that go into the report and are removed again.
FACTS = {
    "_reason": Value("string"),
    "_lost": Value("bool"),
    "_findings": List({"what": Value("string"), "example": Value("string")}),
    "_prompt_tokens": Value("int32"),  # of rows that are set aside, too
    "_cut_tokens": List(Value("int32")),
    "_identical": Value("bool"),
    "_identical_after": Value("bool"),
    "_empty": Value("bool"),
    "_moved": Value("bool"),
    "_repeated": Value("bool"),
    "_unread": List(Value("string")),
    "_layout_tokens": Value("int64"),
    "_keys": List(Value("int64")),
}
# Columns of the data beside prompt, completions and their ranks, scores or labels.
COLUMNS = (
    "weight",
    "margin",
    "preference_probability",
    "score_chosen",
    "score_rejected",
    "win_rate_chosen",
    "win_rate_rejected",
)
PREPARED_COLUMNS = [*OUTPUTS, *OPTIONAL, *COLUMNS]
KEY_BYTES = 16

Ints = NDArray[np.int64]
Row = Mapping[str, Any]


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is read as it comes, without a length."""
    return dataset is not None and not hasattr(dataset, "__len__")


def completion_key(prompt_ids: Ints, completion_ids: Ints) -> bytes:
    """Return what a reference log-prob is stored under, beside its reference; 16 bytes.

    It is a digest of the token ids. Row numbers, masks, losses and batch sizes have no part in it.

    Args:
        prompt_ids: Token ids; (m,). Their number is digested too, so that the border between
            prompt and completion matters.
        completion_ids: Token ids; (n,).
    """
    digest = blake2b(len(prompt_ids).to_bytes(8, "little"), digest_size=KEY_BYTES)
    digest.update(np.ascontiguousarray(prompt_ids, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(completion_ids, dtype="<i8").tobytes())
    return digest.digest()


def completion_keys(prompt_ids: Ints, completions: Sequence[Ints]) -> list[bytes]:
    """Return the key of each completion of a prompt."""
    return [completion_key(prompt_ids, completion) for completion in completions]


def read_chunks(dataset: Dataset, name: str) -> Iterator[pa.Array]:
    """Yield a column piece by piece: joined, its tokens might be more than an array can hold."""
    for table in dataset.select_columns([name]).with_format("arrow").iter(10_000):
        yield from table[name].chunks


def list_lengths(lists: pa.Array) -> Ints:
    """Return the length of each list of an Arrow array; (n,)."""
    return np.asarray(pc.list_value_length(lists), dtype=np.int64)


def examples_of(rows: Iterable[Row], with_kl: bool) -> Iterator[Example]:
    """Return the prompts and completions of prepared rows, those of KTO's KL estimate included.

    A completion that has no part in the estimate has an empty one there, which is left out.
    """
    for row in rows:
        prompt = np.asarray(row["prompt_ids"], dtype=np.int64)
        completions = list(row["completion_ids"])
        if with_kl:
            completions += row["kl_completion_ids"]
        yield Example(prompt, [np.asarray(ids, dtype=np.int64) for ids in completions if len(ids)])


def read_examples(
    dataset: Dataset, with_kl: bool, rows: Sequence[int] | None = None
) -> Iterator[Example]:
    """Return what ``examples_of`` does, of the rows with these numbers or of all."""
    columns = ["prompt_ids", "completion_ids"] + (["kl_completion_ids"] if with_kl else [])
    plain = dataset.select_columns(columns).with_format("arrow")
    if rows is not None:
        yield from _examples(plain[list(rows)], columns)
        return
    for table in plain.iter(1000):
        yield from _examples(table, columns)


def _examples(table: pa.Table, columns: Sequence[str]) -> Iterator[Example]:
    prompt, *completions = (_joined(table[name]) for name in columns)
    lists = [list(_lists_of_lists(column)) for column in completions]
    for row, prompt_ids in enumerate(_lists(prompt)):
        yield Example(prompt_ids, [ids for column in lists for ids in column[row] if len(ids)])


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
