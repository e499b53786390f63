"""Columns of a data set as Arrow arrays, for what is counted over all rows at once."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

__all__ = ["list_lengths", "read_column"]


def read_column(dataset: Dataset, name: str) -> pa.Array:
    """Return a column as one Arrow array."""
    tables = dataset.select_columns([name]).with_format("arrow").iter(10_000)
    return pa.concat_arrays([chunk for table in tables for chunk in table[name].chunks])


def list_lengths(lists: pa.Array) -> NDArray[np.int64]:
    """Return the length of each list of an Arrow array; (n,)."""
    return np.asarray(pc.list_value_length(lists), dtype=np.int64)
