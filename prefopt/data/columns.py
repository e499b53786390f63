"""Checks of a dataset before it is prepared: its class, and its columns of numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from prefopt.data.errors import DataError
from prefopt.data.prepared import COLUMNS

__all__ = ["check_columns", "check_datasets", "check_margins"]

# Least and largest value of a column, and the words for the range.
_RANGES = {
    "weight": (0.0, np.inf, "at least 0"),
    "preference_probability": (0.0, 1.0, "between 0 and 1"),
    "win_rate_chosen": (0.0, 1.0, "between 0 and 1"),
    "win_rate_rejected": (0.0, 1.0, "between 0 and 1"),
}
_ANY = (-np.inf, np.inf, "a number")


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """Check that there is a dataset, and that each is of one of the two accepted classes.

    Raises:
        ValueError: If there is none.
        TypeError: If one is something else, such as a list of rows.
    """
    if train_dataset is None and eval_dataset is None:
        raise ValueError("give a train_dataset, or an eval_dataset to evaluate only")
    parts = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    for dataset in (train_dataset, *parts):
        if dataset is not None and not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(
                "data must be a datasets.Dataset or IterableDataset, got "
                f"{type(dataset).__name__}; make one with datasets.Dataset.from_list(rows)"
            )


def check_columns(dataset: Dataset) -> None:
    """Check the numbers of weights, margins, scores and soft labels; null counts as not given.

    Raises:
        DataError: If one is no finite number or out of its range, or if there is a win rate of one
            side alone; it names row and column.
    """
    for column in COLUMNS:
        if column in dataset.column_names:
            _check_column(dataset, column)
    alone = {"win_rate_chosen", "win_rate_rejected"} & set(dataset.column_names)
    if len(alone) == 1:
        raise DataError("win rates come in pairs: add that of the other completion", None, *alone)


def check_margins(columns: Iterable[str], inputs: Iterable[str]) -> None:
    """Check that the data have margins if a loss takes them; without, all would be 0."""
    if "margins" in set(inputs) and not {"margin", "scores", "score_chosen"} & set(columns):
        raise DataError(
            "the loss takes margins (by how much the chosen completion is better), and the data "
            "have none; add a column 'margin', or 'score_chosen' and 'score_rejected', or 'scores' "
            "of rankings"
        )


def _check_column(dataset: Dataset, column: str) -> None:
    least, largest, words = _RANGES.get(column, _ANY)
    kind = dataset.features[column]
    if getattr(kind, "dtype", "") == "null":
        return
    first = 0
    for batch in dataset.select_columns([column]).with_format("arrow").iter(10_000):
        values = batch[column]
        given = np.asarray(values.is_valid())
        try:
            numbers = values.fill_null(0).to_numpy().astype(np.float64)
        except (ValueError, TypeError, NotImplementedError):
            raise DataError(f"must hold numbers, but is of type {kind}", None, column) from None
        wrong = given & ~(np.isfinite(numbers) & (numbers >= least) & (numbers <= largest))
        if wrong.any():
            place = int(np.argmax(wrong))
            raise DataError(
                f"is {numbers[place]}; it must be finite and {words}", first + place, column
            )
        first += len(numbers)
