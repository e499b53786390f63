"""Checks of a dataset before it is prepared: its class, and its columns of numbers."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from prefopt.data.audit import Finding
from prefopt.data.errors import DataError
from prefopt.data.example import PreferenceExample
from prefopt.data.mixture import read_mixture
from prefopt.data.prepared import COLUMNS

__all__ = [
    "check_columns",
    "check_dataset",
    "check_datasets",
    "check_margins",
    "check_numbers",
    "check_weights",
    "doubts",
    "no_utf8",
]

# Least and largest value of a column, and the words for the range. Batches are in float32.
_LARGEST = float(np.finfo(np.float32).max)
_RANGES = {
    "weight": (0.0, _LARGEST, "a number of at least 0, finite in single precision"),
    "preference_probability": (0.0, 1.0, "a number between 0 and 1"),
    "win_rate_chosen": (0.0, 1.0, "a number between 0 and 1"),
    "win_rate_rejected": (0.0, 1.0, "a number between 0 and 1"),
}
_ANY = (-_LARGEST, _LARGEST, "a number, finite in single precision")
_WIN_RATES = ("win_rate_chosen", "win_rate_rejected")


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """Check that there is a dataset, and that each is of an accepted class, or a list of such.

    Raises:
        ValueError: If there is none, or a list is not one of ``prefopt.data.mixture``.
        TypeError: If one is something else, such as a list of rows.
    """
    if train_dataset is None and eval_dataset is None:
        raise ValueError("give a train_dataset, or an eval_dataset to evaluate only")
    if isinstance(eval_dataset, dict):
        if not eval_dataset:
            raise ValueError("eval_dataset is an empty dictionary; leave it out for none")
        for name, part in eval_dataset.items():
            if not isinstance(name, str):
                raise TypeError(f"eval_dataset: a name must be text, got {name!r}")
            check_dataset(part, f"eval_dataset[{name!r}]")
    elif eval_dataset is not None:
        check_dataset(eval_dataset, "eval_dataset")
    if train_dataset is not None:
        check_dataset(train_dataset, "train_dataset")


def check_dataset(dataset: Any, what: str) -> None:
    """Check that something is a dataset.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(dataset, list) and not (dataset and isinstance(dataset[0], dict)):
        read_mixture(dataset, what)
        return
    if isinstance(dataset, Dataset | IterableDataset):
        return
    if isinstance(dataset, dict) and any(isinstance(one, Dataset) for one in dataset.values()):
        how = f"take one of its splits: {', '.join(map(str, dataset))}"
    else:
        how = "make one with datasets.Dataset.from_list(rows), or prefopt.data.load_rows(path)"
    raise TypeError(
        f"{what} must be a datasets.Dataset or IterableDataset, or a list of Datasets, got "
        f"{type(dataset).__name__}; {how}"
    )


def no_utf8(dataset: Dataset | IterableDataset) -> DataError:
    """Return the error that a dataset holds bytes that are no text, and where."""
    problem = "holds text that is not UTF-8; decode it as what it is, or leave out the row"
    for column in dataset.column_names if isinstance(dataset, Dataset) else ():
        values = dataset.select_columns([column])
        for row in range(len(dataset)):
            try:
                values[row]
            except UnicodeDecodeError:
                return DataError(problem, row, column)
    return DataError(problem)


def check_weights(weights: Iterable[float | None]) -> None:
    """Check that there is anything to learn from.

    Raises:
        DataError: If every weight is 0.
    """
    if all(weight == 0 for weight in weights):
        raise DataError("every weight is 0, so nothing would be learned", None, "weight")


def check_columns(columns: Sequence[str]) -> None:
    """Check that there is no win rate of one side alone.

    Raises:
        DataError: If there is.
    """
    alone = {*_WIN_RATES} & {*columns}
    if len(alone) == 1:
        raise DataError("win rates come in pairs: add that of the other completion", None, *alone)


def check_numbers(batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> None:
    """Check the weights, margins, scores and soft labels of a batch; null counts as not given.

    Raises:
        DataError: If one is no finite number or out of its range, or a win rate is given for one
            side alone; it names row and column.
    """
    for column in (name for name in COLUMNS if name in batch):
        least, largest, words = _RANGES.get(column, _ANY)
        for value, row in zip(batch[column], rows, strict=True):
            is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool)
            if value is not None and not (is_number and least <= float(value) <= largest):
                raise DataError(f"is {value!r}; it must be {words}", row, column)
    if all(column in batch for column in _WIN_RATES):
        for rates in zip(*(batch[column] for column in _WIN_RATES), rows, strict=True):
            if rates.count(None) == 1:
                problem = "is null, but that of the other completion is not"
                raise DataError(problem, rates[2], _WIN_RATES[rates.index(None)])


def check_margins(
    batch: Mapping[str, Sequence[Any]], rows: Sequence[int], kinds: Mapping[int, str]
) -> None:
    """Check that rows say by how much one completion is better than another.

    A loss that takes margins would count what is missing as 0.

    Args:
        batch: Columns.
        rows: Number of each row in the data.
        kinds: Of those of the batch that must say so, by their place in it.

    Raises:
        DataError: If one of these has neither a margin nor scores.
    """
    for place, kind in kinds.items():
        margin, scores, chosen, rejected = (
            batch[name][place] if name in batch else None
            for name in ("margin", "scores", "score_chosen", "score_rejected")
        )
        ranked = kind == "ranked" and scores is not None
        if margin is None and not ranked and None in (chosen, rejected):
            raise DataError(
                "the loss takes margins (by how much the chosen completion is better), and there "
                "is none; add a column 'margin', or 'score_chosen' and 'score_rejected', or "
                "'scores' of rankings",
                rows[place],
            )


def doubts(example: PreferenceExample, cells: Mapping[str, Any]) -> list[Finding]:
    """Return what numbers of a row say against its order of preference."""
    found = []
    if example.kind == "paired":
        for what in ("score", "win_rate"):
            chosen, rejected = cells.get(f"{what}_chosen"), cells.get(f"{what}_rejected")
            if chosen is not None and rejected is not None and chosen < rejected:
                text = f"the rejected completion has the higher {what}"
                found.append(Finding(text, f"{chosen} and {rejected}"))
        if (cells.get("margin") or 0) < 0:
            found.append(Finding("the margin is negative", str(cells["margin"])))
    if any(first < second for first, second in pairwise(example.scores)):
        found.append(Finding("scores and ranks contradict each other", str(example.scores)))
    return found
