"""Columns of a data set read as Arrow arrays, for what is counted over all rows at once."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

__all__ = ["list_lengths", "read_chunks"]


def read_chunks(dataset: Dataset, name: str) -> Iterator[pa.Array]:
    """Yield a column piece by piece: joined, its tokens might be more than an array can hold."""
    for table in dataset.select_columns([name]).with_format("arrow").iter(10_000):
        yield from table[name].chunks


def list_lengths(lists: pa.Array) -> NDArray[np.int64]:
    """Return the length of each list of an Arrow array; (n,)."""
    return np.asarray(pc.list_value_length(lists), dtype=np.int64)
