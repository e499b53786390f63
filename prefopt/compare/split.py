"""Rows divided once: to train on, to choose by, and held out; no prompt is on two sides."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from prefopt.data import DataError, read_example
from prefopt.reference.store.files import digest_of_file

__all__ = ["DataFiles", "Split", "split_rows", "write_split"]


@dataclass(frozen=True)
class Split:
    """The rows of a comparison.

    Attributes:
        train: To train on.
        validation: To make choices by; may have no rows.
        held_out: To measure with, and nothing else.
        notes: What there is to say of it.
    """

    train: Dataset
    validation: Dataset
    held_out: Dataset
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFiles:
    """Where the rows of a comparison are.

    Attributes:
        train: File to train on.
        validation: File to make choices by; None if it has no rows.
        held_out: File to measure with.
        sizes: Rows of each, by name.
        digests: Of their contents, by name.
    """

    train: Path
    validation: Path | None
    held_out: Path
    sizes: dict[str, int]
    digests: dict[str, str]


def split_rows(
    rows: Dataset,
    held_out: Dataset | None = None,
    *,
    held_out_size: float = 0.1,
    validation_size: float = 0.05,
    seed: int = 0,
) -> Split:
    """Divide rows by their prompts.

    Args:
        rows: Preferences in any format of ``prefopt.data``.
        held_out: Rows to measure with, if they are given; rows with the same prompts are then left
            out of training.
        held_out_size: A share of the rows below 1, or their number, if ``held_out`` is not given.
        validation_size: The same, of rows to make choices by; 0 for none.
        seed: Which rows.

    Raises:
        DataError: If a row is no preference.
        ValueError: If a size leaves no rows for a side.
    """
    prompts = _prompts(rows, "train")
    notes = []
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    if held_out is None:
        held, order = _take(order, prompts, _rows(held_out_size, len(rows)), "held_out")
        held_out = rows.select(sorted(held))
    else:
        known = set(_prompts(held_out, "held_out"))
        kept = [row for row in order if prompts[row] not in known]
        if len(kept) < len(order):
            count = len(order) - len(kept)
            notes.append(f"{count:,} rows are not trained on: their prompts are held out")
        order = kept
    chosen, order = _take(order, prompts, _rows(validation_size, len(rows)), "validation")
    if not order:
        raise ValueError(
            f"no rows are left to train on: {len(rows):,} rows, of which {len(held_out):,} are "
            f"held out and {len(chosen):,} for validation; prompts are kept together"
        )
    train, validation = (rows.select(sorted(part)) for part in (order, chosen))
    return Split(train, validation, held_out, tuple(notes))


def write_split(split: Split, folder: Path) -> DataFiles:
    """Write the rows of a comparison as files; what is there and the same stays.

    Args:
        split: The rows.
        folder: Made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": split.train, "validation": split.validation, "held_out": split.held_out}
    files = {name: _write(rows, folder, name) for name, rows in parts.items() if len(rows)}
    return DataFiles(
        files["train"],
        files.get("validation"),
        files["held_out"],
        {name: len(rows) for name, rows in parts.items()},
        {name: digest_of_file(file) for name, file in files.items()},
    )


def _rows(size: float, count: int) -> int:
    if size < 0:
        raise ValueError(f"a share or number of rows must be at least 0, got {size:g}")
    return round(size * count) if size < 1 else round(size)


def _prompts(rows: Dataset, name: str) -> list[bytes]:
    """Return a digest of the prompt of each row."""
    found = []
    for number, row in enumerate(rows):
        try:
            prompt = read_example(row, number).prompt
        except DataError as error:
            raise error.within(name) from error.__cause__
        text = json.dumps(prompt, sort_keys=True, default=str)
        found.append(blake2b(text.encode(), digest_size=16).digest())
    return found


def _take(
    order: Sequence[int], prompts: Sequence[bytes], count: int, name: str
) -> tuple[list[int], list[int]]:
    """Return rows of the first prompts, about so many, and the rest; prompts stay together."""
    if count == 0 and name == "validation":
        return [], list(order)
    taken: set[bytes] = set()
    rows_of: dict[bytes, int] = {}
    for row in order:
        rows_of[prompts[row]] = rows_of.get(prompts[row], 0) + 1
    total = 0
    for prompt, rows in rows_of.items():
        if total >= count or len(taken) == len(rows_of) - 1:
            break
        taken.add(prompt)
        total += rows
    if not taken:
        raise ValueError(f"{name} has no rows: {len(order):,} rows of {len(rows_of):,} prompts")
    of_taken = [row for row in order if prompts[row] in taken]
    return of_taken, [row for row in order if prompts[row] not in taken]


def _write(rows: Dataset, folder: Path, name: str) -> Path:
    """Write rows as JSON lines; those that JSON cannot hold, as parquet."""
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError:
        path = folder / f"{name}.parquet"
        rows.to_parquet(path)
        return path
    path = folder / f"{name}.jsonl"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        temporary = path.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return path


def row_dicts(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
