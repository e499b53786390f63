"""Map rows, all at once or part by part, each part kept in a file of its own."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, concatenate_datasets

__all__ = ["Parts", "map_rows"]


class Parts(NamedTuple):
    """Where parts of mapped rows are kept.

    Attributes:
        folder: Which holds a file for each part, or several with several processes.
        digest: Of all that decides what is in them; a part of their names.
        rows: Of a part.
    """

    folder: Path
    digest: str
    rows: int

    def file_of(self, first: int) -> str:
        """Return the file of the part that begins with a row."""
        return str(self.folder / f"{self.digest}-{self.rows}-{first:012d}.arrow")


def map_rows(
    dataset: Dataset,
    function: Callable[..., Mapping[str, Any]],
    parts: Parts | None,
    num_proc: int | None,
    **options: Any,
) -> Dataset:
    """Return the rows that a function makes of batches and their row numbers.

    Args:
        dataset: The rows.
        function: Takes columns, row numbers, and ``fn_kwargs`` of the options.
        parts: Parts that are there are read; others are made, and are there once they are whole.
            None to make all at once.
        num_proc: Processes; None for this one.
        **options: Of ``datasets.Dataset.map``.
    """
    options = {**options, "batched": True, "with_indices": True}
    if parts is None:
        processes = min(num_proc, len(dataset)) if num_proc else None
        return dataset.map(function, num_proc=processes, **options)
    made = []
    for first in range(0, len(dataset), parts.rows):
        rows = dataset.select(range(first, min(first + parts.rows, len(dataset))))
        made.append(
            rows.map(
                partial(_of_part, function, first),
                num_proc=min(num_proc, len(rows)) if num_proc else None,
                cache_file_name=parts.file_of(first),
                load_from_cache_file=True,
                **options,
            )
        )
    return concatenate_datasets(made)


def _of_part(
    function: Callable[..., Mapping[str, Any]],
    first: int,
    batch: Mapping[str, Any],
    numbers: Sequence[int],
    **options: Any,
) -> Mapping[str, Any]:
    """Call a function with the numbers that rows of a part have in the whole."""
    return function(batch, [first + number for number in numbers], **options)
