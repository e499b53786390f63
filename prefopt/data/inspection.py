"""What a dataset is, before or after it is prepared."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node

from prefopt.data.kinds import detect_kind
from prefopt.data.views import COLUMNS

PREPARED_COLUMNS = [
    "kind",
    "prompt_ids",
    "completion_ids",
    "completion_masks",
    "desirable",
    "ranks",
    "scores",
    "kl_completion_ids",
    *COLUMNS,
]


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """Check that there is a dataset, and that each is one of the two classes that are taken.

    Args:
        train_dataset: One dataset or None.
        eval_dataset: One dataset, a dictionary of such by name, or None.

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


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is read as it comes, without a length."""
    return dataset is not None and not hasattr(dataset, "__len__")


def _columns(dataset: Any) -> Sequence[str]:
    columns: Sequence[str] | None = getattr(dataset, "column_names", None)
    return columns or list(next(iter(dataset)))


def is_prepared(dataset: Any, needs_kl: bool) -> bool:
    """Whether a dataset holds prepared rows, with mismatched completions if they are needed."""
    wanted = {"kind", "prompt_ids", "completion_ids", "desirable", "ranks"}
    wanted |= {"kl_completion_ids"} if needs_kl else set()
    return wanted <= set(_columns(dataset))


def first_kinds(train_dataset: Any, eval_dataset: Any) -> frozenset[str]:
    """Return the kind of the first row of the data, raw or prepared."""
    dataset = train_dataset if train_dataset is not None else eval_dataset
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()))
    for row in dataset:
        return frozenset(
            {row["kind"] if "completion_ids" in row and "kind" in row else detect_kind(row)}
        )
    raise ValueError("the dataset has no rows")


def share_of(dataset: Any, rank: int, world_size: int) -> Any:
    """Return every world_size-th row, so that each is evaluated once."""
    if is_stream(dataset):
        return split_dataset_by_node(dataset, rank, world_size)
    return dataset.select(range(rank, len(dataset), world_size))
