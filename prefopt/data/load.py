"""Loads preferences from the Hub, from folders, and from files, compressed or not."""

import gzip
import json
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk

from prefopt.data.errors import DataError
from prefopt.data.messages import Message
from prefopt.data.prepare import prepare_dataset
from prefopt.data.report import DataReport
from prefopt.data.tokenize import Tokenizer

__all__ = ["load_rows", "report_for"]

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
RAGGED = ("tools", "chat_template_kwargs")  # columns whose rows may differ in keys and types
KNOWN = f"{', '.join(BUILDERS)}, each also with {', '.join(COMPRESSIONS)}"


def load_rows(
    path_or_name: str | Path,
    split: str | None = None,
    *,
    config: str | None = None,
    streaming: bool = False,
) -> Dataset | DatasetDict | IterableDataset:
    """Load a data set from a file, a folder or the Hub, whichever the name is.

    Args:
        path_or_name: A json, jsonl, csv or parquet file, also compressed; a folder with such files
            or made by ``save_to_disk``; or an id on the Hub.
        split: Split to take, as ``test`` or ``train[:10%]``; None for the only one, or all.
        config: Configuration of a data set that has several.
        streaming: Whether to read it as a stream.

    Returns:
        The split; without ``split``, a dictionary of all of them if there are several.

    Raises:
        DataError: If there is no such file, folder, data set or split, or it can't be read.
    """
    path = Path(path_or_name).expanduser()
    try:
        if path.is_file():
            loaded = _load_file(path, split, streaming)
        elif path.is_dir() and _is_saved(path):
            loaded = _split_of(load_from_disk(str(path)), split, path)
            loaded = loaded.to_iterable_dataset() if streaming else loaded
        elif path.is_dir():
            if not _has_data(path):
                raise DataError(f"the folder {path} has no data files: {KNOWN}")
            loaded = load_dataset(str(path), config, split=split, streaming=streaming)
        elif _looks_like_a_path(str(path_or_name)):
            raise DataError(f"there is no file or folder {path_or_name}")
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
        DataError: If the data can't be read, or holds no preferences.
    """
    rows = load_rows(path_or_name, split)
    if isinstance(rows, dict):
        raise DataError(f"{path_or_name} has several splits, take one of: {', '.join(rows)}")
    name = split or Path(path_or_name).name
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        tokenizer = cast(Tokenizer, AutoTokenizer.from_pretrained(str(tokenizer)))
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

    def apply_chat_template(
        self, conversation: list[Message], *, add_generation_prompt: bool = False, **options: Any
    ) -> str:
        text = "".join(f"{turn['role']}: {turn['content']}\n" for turn in conversation)
        return text + "assistant: " if add_generation_prompt else text


def _load_file(path: Path, split: str | None, streaming: bool) -> Any:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    builder = BUILDERS.get(suffixes[-1] if suffixes else "")
    if builder is None:
        raise DataError(f"{path} is of no known type; known are {KNOWN}")
    try:
        return load_dataset(
            builder, data_files=str(path), split=split or "train", streaming=streaming
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


def _load_ragged(path: Path, split: str | None) -> Dataset:
    """Load json whose tools or template arguments differ in type; these become JSON text."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
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


def _has_data(path: Path) -> bool:
    return any(
        {suffix.lower() for suffix in file.suffixes} & {*BUILDERS, ".arrow"}
        for file in path.rglob("*")
        if file.is_file()
    )


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


def _explain(path_or_name: str | Path, path: Path, error: Exception) -> str:
    where = (
        path if path.exists() else f"{path_or_name} (no such file or folder; as an id on the Hub)"
    )
    first_lines = [line for line in str(error).splitlines() if line.strip()][:3]
    return f"can't load {where}: {type(error).__name__}: {' '.join(first_lines)}"
