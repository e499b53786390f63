"""Several datasets in one run: how often the rows of each are used, and how they become one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset, Value, concatenate_datasets
from numpy.typing import NDArray

from prefopt.data.errors import DataError
from prefopt.data.prepared import COLUMNS

__all__ = ["WeightedDataset", "mix", "names_of", "read_mixture", "rows_used"]


class WeightedDataset(NamedTuple):
    """One of several datasets of a run; a plain tuple of the same values works too.

    The weight says how often each row is used in an epoch: 1 once, 2 twice, 0.5 a half of the rows,
    drawn by the run's seed and the same in every epoch; 1.5 each once and a half of them twice. It
    does not change the loss of a row, as a column ``weight`` does.

    Attributes:
        dataset: The data, in any format, not as a stream.
        weight: How often each row is used in an epoch; greater than 0.
        name: What to call it in reports and errors; None for its place in the list.
    """

    dataset: Any
    weight: float = 1.0
    name: str | None = None


def read_mixture(items: Sequence[Any], what: str = "datasets") -> list[WeightedDataset]:
    """Return the datasets of a list, each with its weight.

    Args:
        items: Datasets, or tuples of a dataset, its weight and its name.
        what: What the list is called in errors.

    Raises:
        TypeError: If an item is something else.
        ValueError: If there is none, one is a stream or has no rows, or a weight is not greater
            than 0.

    Examples:
        >>> a = Dataset.from_dict({"prompt": ["?"], "chosen": [" a"], "rejected": [" b"]})
        >>> [part.weight for part in read_mixture([a, (a, 0.5)])]
        [1.0, 0.5]
    """
    if not items:
        raise ValueError(f"{what} is an empty list; give at least one dataset")
    parts = []
    for place, item in enumerate(items):
        part = WeightedDataset(*item) if _is_weighted(item) else WeightedDataset(item)
        _check(part, f"{what}[{place}]" + (f" ({part.name})" if part.name else ""))
        parts.append(part._replace(weight=float(part.weight)))
    return parts


def names_of(parts: Sequence[WeightedDataset], name: str) -> list[str]:
    """Return what to call each of the datasets that make a dataset of this name; no two alike.

    Examples:
        >>> parts = [WeightedDataset(None, 1.0, its) for its in (None, "a.csv", "a.csv")]
        >>> names_of(parts, "train")
        ['train[0]', 'train: a.csv', 'train: a.csv (2)']
    """
    given = [part.name for part in parts]
    return [
        f"{name}[{place}]"
        if its is None
        else f"{name}: {its}" + (f" ({before + 1})" if (before := given[:place].count(its)) else "")
        for place, its in enumerate(given)
    ]


def rows_used(count: int, weight: float, seed: Sequence[int]) -> NDArray[np.int64]:
    """Return the numbers of the rows that an epoch uses of a dataset, in the order of the data.

    Args:
        count: Rows that there are.
        weight: How often each is used. The product with ``count`` is rounded.
        seed: Of the rows that are used once more than others.

    Raises:
        DataError: If no row would be used.

    Examples:
        >>> rows_used(3, 2.0, [0]).tolist(), len(rows_used(10, 0.5, [0]))
        ([0, 0, 1, 1, 2, 2], 5)
    """
    wanted = round(weight * count)
    if not wanted:
        raise DataError(f"a weight of {weight:g} leaves none of {count} rows; give a larger one")
    times, more = divmod(wanted, count)
    often = np.full(count, times)
    often[np.random.default_rng(seed).permutation(count)[:more]] += 1
    return np.repeat(np.arange(count), often)


def mix(parts: Sequence[tuple[Dataset, NDArray[np.int64]]]) -> Dataset:
    """Return prepared rows of several datasets as one, dataset after dataset.

    A column that some lack is null in their rows. One that training does not read is left out where
    its types differ.

    Args:
        parts: Prepared rows, and the numbers of those that are used.
    """
    chosen = [
        rows if np.array_equal(used, np.arange(len(rows))) else rows.select(used)
        for rows, used in parts
    ]
    types: dict[str, set[str]] = {}
    for rows in chosen:
        for column, its in rows.features.items():
            if its != Value("null"):
                types.setdefault(column, set()).add(str(its))
    unlike = {column for column, its in types.items() if len(its) > 1}
    return concatenate_datasets([_of_one_type(rows, unlike) for rows in chosen])


def _of_one_type(rows: Dataset, unlike: set[str]) -> Dataset:
    """Return rows whose numbers are floats where some are integers, and other such columns gone."""
    its = unlike & {*rows.column_names}
    rows = rows.remove_columns(sorted(its - {*COLUMNS}))
    for column in sorted(its & {*COLUMNS}):
        rows = rows.cast_column(column, Value("float64"))
    return rows


def _is_weighted(item: Any) -> bool:
    return isinstance(item, tuple) and 1 <= len(item) <= len(WeightedDataset._fields)


def _check(part: WeightedDataset, what: str) -> None:
    dataset, weight, _ = part
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"{what} is a stream, which has no number of rows for a weight to share out; load it "
            "without streaming, or mix streams of one layout by datasets.interleave_datasets "
            "and give the result"
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{what} must be a datasets.Dataset, or a tuple of one and its weight, got "
            f"{type(dataset).__name__}; of a list of rows make one with "
            "datasets.Dataset.from_list(rows)"
        )
    if not len(dataset):
        raise ValueError(f"{what} has no rows")
    if isinstance(weight, bool) or not isinstance(weight, int | float | np.number):
        raise TypeError(f"the weight of {what} must be a number, got {weight!r}")
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(
            f"the weight of {what} must be greater than 0 and finite, got {weight}: it says how "
            "often each row is used in an epoch; leave a dataset out to use none"
        )
