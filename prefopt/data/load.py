"""Loads preferences from the Hub, from folders, and from files, compressed or not."""

import difflib
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.data_files import FILES_TO_IGNORE
from pyarrow.parquet import ParquetFile

from prefopt.data.errors import DataError
from prefopt.data.files import (
    BUILDERS,
    COMPRESSIONS,
    NO_VALUE,
    builder_of,
    iter_rows,
    text_or_none,
)
from prefopt.data.formats import SOURCE_COLUMNS
from prefopt.data.messages import Message
from prefopt.data.prepare import prepare_dataset
from prefopt.data.report import DataReport
from prefopt.data.template import Tokenizer

__all__ = ["load_rows", "report_for"]

RAGGED = ("tools", "chat_template_kwargs")  # columns whose rows may differ in keys and types
# Columns of numbers; a csv file's others hold text, also where it looks like a number.
NUMBERS = ("label", "ranks", "scores")
TEXT_COLUMNS = tuple(column for column in SOURCE_COLUMNS if column not in NUMBERS)
KNOWN = f"{', '.join(BUILDERS)}, each also with {', '.join(COMPRESSIONS)}"


def load_rows(
    path_or_name: str | Path,
    split: str | None = None,
    *,
    config: str | None = None,
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: Any = None,
    text_columns: Collection[str] = (),
) -> Dataset | DatasetDict | IterableDataset:
    """Load a data set from a file, a folder or the Hub, whichever the name is.

    Args:
        path_or_name: A json, jsonl, csv or parquet file, also compressed; a folder with such files
            or made by ``save_to_disk``; or an id on the Hub.
        split: Split to take, as ``test`` or ``train[:10%]``; None for the only one, or all.
        config: Configuration of a data set that has several.
        streaming: Whether to read it as a stream.
        data_dir: Folder within the data set, as ``datasets.load_dataset`` takes it.
        data_files: Files within it; ``path_or_name`` may then be their type, as ``json``.
        text_columns: Further columns of a csv file that hold text, also where it looks like a
            number or a missing value: those that will be renamed to one that does.

    Returns:
        The split; without ``split``, a dictionary of all of them if there are several.

    Raises:
        DataError: If there is no such file, folder, data set or split, or it can't be read.
    """
    if not isinstance(path_or_name, str | Path) or not str(path_or_name).strip():
        raise DataError(f"data are a file, a folder or an id on the Hub, got {path_or_name!r}")
    path, texts = Path(path_or_name), (*TEXT_COLUMNS, *text_columns)
    try:
        path = path.expanduser()
        if data_dir is not None or data_files is not None:
            within = {"data_dir": data_dir, "data_files": data_files, "streaming": streaming}
            loaded = load_dataset(str(path_or_name), config, split=split, **within)
        elif path.is_file():
            loaded = _load_file(path, split, streaming, texts)
        elif path.is_dir() and _is_saved(path):
            loaded = _split_of(load_from_disk(str(path)), split, path)
            loaded = loaded.to_iterable_dataset() if streaming else loaded
        elif path.is_dir():
            options = _check_folder(path, streaming, texts)
            loaded = load_dataset(str(path), config, split=split, streaming=streaming, **options)
        elif _looks_like_a_path(str(path_or_name)):
            raise DataError(f"there is no file or folder {path_or_name}{_near(path, '')}")
        else:
            loaded = load_dataset(str(path_or_name), config, split=split, streaming=streaming)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds of errors for wrong input
        raise DataError(_explain(path_or_name, path, error)) from error
    if isinstance(loaded, dict) and len(loaded) == 1:
        return next(iter(loaded.values()))
    return loaded


def report_for(
    path_or_name: str | Path,
    tokenizer: Tokenizer | str | Path | None = None,
    max_length: int | None = 1024,
    split: str | None = None,
) -> DataReport:
    """Return the report that training would print of a data set; it needs no model.

    Args:
        path_or_name: The data, as ``load_rows`` takes it.
        tokenizer: A tokenizer, or its id or folder. None counts bytes in place of tokens, with
            neither end-of-sequence token nor chat template, and without ``max_length``.
        max_length: Most tokens of a prompt + completion; None for no limit.
        split: Split to take; it may be left out if there is only one.

    Raises:
        DataError: If the data or the tokenizer can't be read, or it holds no preferences.
    """
    rows = load_rows(path_or_name, split)
    if isinstance(rows, dict):
        raise DataError(f"{path_or_name} has several splits, take one of: {', '.join(rows)}")
    name = split or Path(path_or_name).name
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        try:
            tokenizer = cast(Tokenizer, AutoTokenizer.from_pretrained(str(tokenizer)))
        except Exception as error:  # transformers raises many kinds of errors
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise DataError(f"can't load the tokenizer {tokenizer}: {said}") from error
    elif tokenizer is None:
        tokenizer, max_length = _Bytes(), None
    report = prepare_dataset(rows, tokenizer, max_length=max_length, name=name).report
    assert report is not None  # only streams have none
    return report


class _Bytes:
    """Tokenizer for reports without a model: every byte is a token."""

    unit = "bytes"
    eos_token: str | None = ""
    chat_template: Any = "role: content"

    def __call__(self, text: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(item.encode()) for item in text]}

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def apply_chat_template(
        self, conversation: list[Message], *, add_generation_prompt: bool = False, **options: Any
    ) -> str:
        lines = [json.dumps(options["tools"], ensure_ascii=False)] if options.get("tools") else []
        for turn in conversation:
            others = {key: turn[key] for key in turn if key not in ("role", "content")}
            more = json.dumps(others, ensure_ascii=False) if others else ""
            lines.append(f"{turn['role']}: {turn.get('content') or ''}{more}")
        return "\n".join([*lines, "assistant: " if add_generation_prompt else ""])


def _load_file(path: Path, split: str | None, streaming: bool, text_columns: Sequence[str]) -> Any:
    builder = builder_of(path)
    if builder is None:
        raise DataError(f"{path} is of no known type; known are {KNOWN}")
    if streaming and builder != "parquet" and split in (None, "train"):
        rows = {"path": str(path), "text_columns": text_columns}
        return IterableDataset.from_generator(iter_rows, gen_kwargs=rows)
    columns = _check_file(path, builder, text_columns)
    options = _csv_options(columns, text_columns) if builder == "csv" else {}
    try:
        return load_dataset(
            builder, data_files=str(path), split=split or "train", streaming=streaming, **options
        )
    except ValueError as error:
        if "split" in str(error).lower():
            raise DataError(
                f"{path} is one file, its only split is 'train', not {split!r}"
            ) from None
        raise
    except Exception:
        if builder != "json" or streaming:
            raise
        return _load_ragged(path, split)


def _check_file(path: Path, builder: str, text_columns: Sequence[str]) -> list[str]:
    """Read a json or csv file to its end, the plan of a parquet file; return the columns."""
    if builder == "parquet":
        if path.suffix == ".parquet":
            ParquetFile(path)  # of a stream, what is cut off would be met when it is read
        return []
    columns: dict[str, None] = {}
    for row in iter_rows(path, text_columns):
        columns.update(dict.fromkeys(row))
    if not columns:
        raise DataError(f"{path} has no rows")
    return list(columns)


def _csv_options(columns: list[str], text_columns: Sequence[str]) -> dict[str, Any]:
    """Return how pandas is to read a csv file: text as it stands, and no column as an index."""
    texts = [column for column in columns if column in text_columns]
    return {
        "index_col": False,
        "converters": dict.fromkeys(texts, text_or_none),
        "keep_default_na": False,
        "na_values": {column: [*NO_VALUE] for column in columns if column not in texts},
    }


def _load_ragged(path: Path, split: str | None) -> Dataset:
    """Load json whose tools or template arguments differ in type; these become JSON text."""
    rows = list(iter_rows(path))
    for row in rows:
        for column in RAGGED:
            if row.get(column) is not None and not isinstance(row[column], str):
                row[column] = json.dumps(row[column])
    loaded = Dataset.from_list(rows)
    if split in (None, "train"):
        return loaded
    raise DataError(f"{path} is read as a whole; leave out the split {split!r}")


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def _check_folder(folder: Path, streaming: bool, text_columns: Sequence[str]) -> dict[str, Any]:
    """Check that a folder has data files, all of one type and none broken; return how to load."""
    found = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden and file.name not in FILES_TO_IGNORE:
            builder = "arrow" if file.suffix == ".arrow" else builder_of(file)
            if builder is not None:
                found[builder].append(file)
    if not found:
        raise DataError(f"the folder {folder} has no data files: {KNOWN}")
    if len(found) > 1:
        names = " and ".join(files[0].name for files in found.values())
        raise DataError(f"the folder {folder} has files of several types, such as {names}")
    builder, files = found.popitem()
    if builder not in ("json", "csv") or streaming:
        return {}
    columns = dict.fromkeys(
        column for file in files for column in _check_file(file, builder, text_columns)
    )
    return _csv_options([*columns], text_columns) if builder == "csv" else {}


def _split_of(loaded: Dataset | DatasetDict, split: str | None, path: Path) -> Any:
    if split is None:
        return loaded
    if not isinstance(loaded, dict):
        raise DataError(f"{path} has no splits; leave out the split {split!r}")
    if split not in loaded:
        raise DataError(f"{path} has no split {split!r}; it has {', '.join(loaded)}")
    return loaded[split]


def _looks_like_a_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or any(suffix in BUILDERS or suffix in COMPRESSIONS for suffix in Path(name).suffixes)
    )


def _near(path: Path, otherwise: str | None = None) -> str:
    """Return a hint at what lies beside where a file or folder was looked for, and is not."""
    folder = path.parent
    try:
        names = [item.name for item in folder.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f" (did you mean {folder / near[0]}?)"
    return f" in {folder.absolute()}" if otherwise is None else otherwise


def _explain(path_or_name: str | Path, path: Path, error: Exception) -> str:
    try:
        exists = path.exists()
    except OSError:  # a name that is too long
        exists = False
    where = str(path)
    if not exists:
        where = (
            f"{path_or_name}: there is no such file or folder{_near(path)}, and as an id on the Hub"
        )
    while error.__cause__ is not None:  # `datasets` says that there is one
        error = cast(Exception, error.__cause__)
    first_lines = [line for line in str(error).splitlines() if line.strip()][:3]
    return f"can't load {where[:300]}: {type(error).__name__}: {' '.join(first_lines)[:300]}"
