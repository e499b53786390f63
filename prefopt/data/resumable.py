"""Preparation of long data ahead of training: part by part, so that it goes on where it was ended.

Each part is a file that is whole or not there. What decides its content, the rows and how they are
prepared, is part of its name: other rows, another tokenizer or length never find it. The result is
a folder of token ids, which says with which tokenizer they were made.
"""

import json
import shutil
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from prefopt.data.errors import DataError
from prefopt.data.parts import Parts
from prefopt.data.prepare import prepare_dataset
from prefopt.data.prepared import VERSION
from prefopt.data.report import DataReport
from prefopt.data.template import Tokenizer

__all__ = ["check_same_tokens", "prepare_to_folder", "tokenizer_digest"]

# Rows of a part: what a kill can cost.
ROWS_PER_PART = 2000

_PARTS = ".parts"
_MARK = "prefopt prepared: "


def prepare_to_folder(
    rows: Dataset | Mapping[str, Dataset],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    max_length: int | None = 1024,
    num_proc: int | None = None,
    rows_per_part: int = ROWS_PER_PART,
) -> list[DataReport]:
    """Prepare data and save them in a folder, which is then given to training as its data.

    Ended before it is done, the next call goes on with the parts that the folder lacks.

    Args:
        rows: The data, or a dictionary of splits.
        tokenizer: That of the model.
        folder: Where to; what ``datasets`` loads with ``load_from_disk``.
        max_length: Most tokens of a prompt + completion; None for no limit.
        num_proc: Processes that prepare a part; None for this one.
        rows_per_part: Rows of a part.

    Returns:
        The report of each split.

    Raises:
        DataError: If rows are wrong, they are a stream, or the folder has something else in it.
    """
    _check_folder(folder)
    splits = dict(rows) if isinstance(rows, Mapping) else {"train": rows}
    made: dict[str, Dataset] = {}
    reports: list[DataReport] = []
    facts = {
        "version": VERSION,
        "tokenizer": tokenizer_digest(tokenizer),
        "max_length": max_length,
    }
    (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        if not isinstance(split, Dataset):
            raise DataError("a stream cannot be prepared ahead: load it whole", dataset=name)
        prepared = prepare_dataset(
            split,
            tokenizer,
            max_length=max_length,
            num_proc=num_proc,
            name=name,
            parts=Parts(folder / _PARTS, _digest(facts, split._fingerprint), rows_per_part),
        )
        assert isinstance(prepared.dataset, Dataset)  # no stream
        assert prepared.report is not None
        prepared.dataset.info.description = _MARK + json.dumps(facts)
        made[name] = prepared.dataset
        reports.append(prepared.report)
    _save(DatasetDict(made) if isinstance(rows, Mapping) else made["train"], folder)
    return reports


def _check_folder(folder: Path) -> None:
    others = [item.name for item in folder.glob("*") if item.name != _PARTS]
    if folder.is_file() or others:
        what = f"has {others[0]} in it" if others else "is a file"
        raise DataError(f"{folder} {what}: name a new folder, or one whose preparation was ended")


def _save(made: Dataset | DatasetDict, folder: Path) -> None:
    """Save rows so that the folder is whole or, but for its parts, empty; then drop the parts."""
    whole = folder / _PARTS / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    made.save_to_disk(str(whole))
    # What makes the folder one of `datasets` comes last.
    last = ("dataset_dict.json", "state.json")
    for item in sorted(whole.iterdir(), key=lambda item: item.name in last):
        item.replace(folder / item.name)
    shutil.rmtree(folder / _PARTS)


# What is checked where such rows are trained on ---------------------------------------------------


def check_same_tokens(
    dataset: Any, tokenizer: Tokenizer | None, max_length: int | None, name: str
) -> None:
    """Raise where rows were prepared ahead with another tokenizer, or cut shorter than is wanted.

    Raises:
        DataError: Saying which.
    """
    text = getattr(getattr(dataset, "info", None), "description", None) or ""
    if not text.startswith(_MARK):
        return
    facts = json.loads(text.removeprefix(_MARK))
    if tokenizer is not None and facts["tokenizer"] != tokenizer_digest(tokenizer):
        raise DataError(
            "was prepared with another tokenizer or chat template than this model's: prepare it "
            "again with `prefopt data prepare --tokenizer` and this model",
            dataset=name,
        )
    kept = facts["max_length"]
    if kept is not None and (max_length is None or max_length > kept):
        raise DataError(
            f"was prepared with max_length={kept}, which cut it, and max_length is {max_length} "
            "now: prepare it again, or set max_length to what it was",
            dataset=name,
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """Return what is equal for tokenizers that make the same token ids of the same rows."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    # How texts are cut and padded is set at each call.
    rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    template = getattr(tokenizer, "chat_template", None)
    return _digest(rules, vocabulary, template, getattr(tokenizer, "eos_token", None))


def _digest(*facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()
