"""The rows of a run, as its options name them: one dataset, or several with weights."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from prefopt.cli.errors import UserError

# What a key of an entry is called elsewhere, and what to write here.
_OTHER_KEYS = {
    "id": "path",
    "dataset": "path",
    "dataset_name": "path",
    "config": "name",
    "dataset_config": "name",
    "subset": "name",
    "dataset_split": "split",
    "fraction": "weight (how often each row is used in an epoch, where TRL's fraction is the share "
    "of the mixture)",
}

# A path that is one of these is the type of data_files.
_TYPES = ("json", "csv", "parquet")


@dataclass(frozen=True)
class DatasetEntry:
    """One of several datasets: an item of ``datasets``, with the keys that TRL has, and a weight.

    Attributes:
        path: Hub id, folder or file, or the type of ``data_files``, as ``json``.
        name: Configuration of a dataset that has several.
        split: Split to train on, also a part of it; None for the only one, or train.
        columns: The columns to read; None for all.
        rename: What columns become, by the name that they have in the data.
        limit: At most so many rows, the first; None for all.
        data_dir: Folder within the dataset.
        data_files: Files within the dataset, or of the type that ``path`` is.
        weight: How often each row is used in an epoch.
    """

    path: str
    name: str | None = None
    split: str | None = None
    columns: list[str] | None = None
    rename: dict[str, str] | None = None
    limit: int | None = None
    data_dir: str | None = None
    data_files: Any = None
    weight: float = 1.0

    @classmethod
    def read(cls, item: Any) -> "DatasetEntry":
        """Return the entry that a path or a mapping describes.

        Raises:
            ValueError: If it is neither, has no path, or a key that there is not.

        Examples:
            >>> DatasetEntry.read({"path": "pairs.jsonl", "weight": 0.5}).label
            'pairs.jsonl'
        """
        if isinstance(item, str):
            return cls(item)
        if not isinstance(item, Mapping):
            raise ValueError(
                f"datasets must list paths, or mappings such as {{path: pairs.jsonl}}; got {item!r}"
            )
        known = [part.name for part in fields(cls)]
        for key in item:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = _OTHER_KEYS.get(str(key), near[0] if near else None)
                raise ValueError(
                    f"unknown key {key!r} in datasets"
                    + (f"; use {hint} instead" if hint else "")
                    + f" (there are: {', '.join(known)})"
                )
        if not isinstance(item.get("path"), str):
            raise ValueError(f"an entry of datasets needs a path (Hub id, folder or file): {item}")
        columns = item.get("columns")
        if isinstance(columns, str) or not isinstance(columns or [], list):
            raise ValueError(f"columns of {item['path']} must be a list of names, got {columns!r}")
        rename, limit = item.get("rename"), item.get("limit")
        if not isinstance(rename or {}, Mapping) or not all(
            isinstance(name, str) for pair in (rename or {}).items() for name in pair
        ):
            raise ValueError(
                f"rename of {item['path']} must map names of columns to names that are read, such "
                f"as {{question: prompt}}; got {rename!r}"
            )
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise ValueError(f"limit of {item['path']} must be a number of rows, got {limit!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit of {item['path']} must be at least 1, got {limit}")
        return cls(**{**item, "weight": _number(item["path"], item.get("weight"))})

    @property
    def label(self) -> str:
        """What the dataset is called in reports and errors."""
        files = self.data_files if isinstance(self.data_files, str) else None
        more = [part for part in (self.name, self.data_dir, files, self.split) if part]
        return f"{self.path} ({', '.join(more)})" if more else self.path

    def load(self, split: str | None = None, streaming: bool = False) -> Any:
        """Return its rows, or those of another split.

        Raises:
            ValueError: If it cannot be read, or has no such split or columns.
        """
        rows = train_split(self.load_all(split or self.split, streaming), self.path)
        named = [*(self.columns or []), *(self.rename or {})]
        missing = [column for column in named if column not in rows.column_names]
        if missing:
            raise ValueError(
                f"{self.label} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}"
            )
        if self.columns:
            rows = rows.select_columns([name for name in rows.column_names if name in named])
        if self.rename:
            rows = self.renamed(rows)
        return rows if self.limit is None else rows.select(range(min(self.limit, len(rows))))

    def renamed(self, rows: Any) -> Any:
        """Return rows, or splits of rows, whose columns have the names that are read.

        Raises:
            ValueError: If there is no such column, or two would have one name.
        """
        if isinstance(rows, Mapping):
            return {name: self.renamed(its) for name, its in rows.items()}
        if not self.rename or rows.column_names is None:  # of some streams nobody knows them
            return rows.rename_columns(self.rename) if self.rename else rows
        missing = [column for column in self.rename if column not in rows.column_names]
        if missing:
            raise ValueError(
                f"{self.label} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}"
            )
        names = [(self.rename or {}).get(column, column) for column in rows.column_names]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"{self.label}: after rename there are two columns {twice[0]!r}; in an entry of "
                "datasets, give columns too, the list of those to read"
            )
        return rows.rename_columns({k: v for k, v in (self.rename or {}).items() if k != v})

    def load_all(self, split: str | None = None, streaming: bool = False) -> Any:
        """Return the rows of a split; without one, all splits if there are several."""
        from prefopt.data import load_rows
        from prefopt.data.load import TEXT_COLUMNS

        texts = [old for old, new in (self.rename or {}).items() if new in TEXT_COLUMNS]
        files = self.data_files
        if self.path in _TYPES and isinstance(files, str) and Path(files).is_file():
            return load_rows(files, split, streaming=streaming, text_columns=texts)
        return load_rows(
            self.path,
            split,
            config=self.name,
            streaming=streaming,
            data_dir=self.data_dir,
            data_files=self.data_files,
            text_columns=texts,
        )


@dataclass
class DataArguments:
    """The data of a run, under the names that TRL's scripts use."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "aliases": ["--dataset"],
            "help": "Hub id, local folder, or file (json, jsonl, csv, parquet, also .gz).",
        },
    )
    datasets: list[str] | None = field(
        default=None,
        metadata={
            "help": "Several datasets in place of one: paths, or in a YAML file mappings with "
            "path, weight (how often each row is used in an epoch, default 1), name (of a "
            "configuration), split, columns (to read), rename (what columns become), limit (the "
            "first so many rows), data_dir, data_files."
        },
    )
    eval_datasets: list[str] | None = field(
        default=None,
        metadata={"help": "Datasets to evaluate on, as in datasets; their weights change nothing."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Name of the dataset's configuration, if it has several."}
    )
    dataset_train_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to train on, also a part such as train[:1000]. By default the only one, "
            "or train."
        },
    )
    dataset_test_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on. By default test, where there is one and eval_strategy "
            "asks for evaluations."
        },
    )
    eval_fraction: float = field(
        default=0.0,
        metadata={
            "aliases": ["--test_split_size"],
            "help": "Share of the training rows held out, by the run's seed, to evaluate on; "
            "at least 0 and below 1. Not together with dataset_test_split.",
        },
    )
    eval_rows: int = field(
        default=0,
        metadata={
            "help": "The same as a number of rows; of several datasets, shared out by their rows."
        },
    )
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read rows as they are needed; needs max_steps."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Which columns of the dataset are read as what: prompt=instruction "
            "chosen=better; in a YAML file also a mapping. An entry of datasets has its own rename."
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(
                f"eval_fraction must be in [0, 1), got {self.eval_fraction}: it is a share of the "
                "rows (test_split_size is another name of it)"
            )
        if self.eval_rows < 0:
            raise ValueError(
                f"eval_rows must be a number of rows, at least 0, got {self.eval_rows}"
            )
        sources = ("eval_fraction", "eval_rows", "dataset_test_split", "eval_datasets")
        given = [name for name in sources if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give {given[0]} or {given[1]}, not both")
        for name in ("eval_fraction", "eval_rows"):
            if name in given and self.dataset_streaming:
                raise ValueError(f"{name} needs the whole dataset: it does not go with streaming")
        if isinstance(self.dataset_name, list):
            raise ValueError("dataset_name is one dataset; several go to datasets")
        _ = self.rename  # raises for what it cannot read
        if self.eval_datasets is not None:
            _check_list("eval_datasets", self.eval_datasets)
        if self.datasets is not None:
            self._check_several()

    @property
    def rename(self) -> dict[str, str]:
        """What columns become, by the name that they have in the data.

        Raises:
            ValueError: If ``columns`` is neither a mapping nor a list of pairs.
        """
        given: Any = self.columns or {}
        if not isinstance(given, Mapping):
            items = given.split() if isinstance(given, str) else map(str, given)
            pairs = [item.partition("=") for item in items]
            if not all(ours and theirs for ours, _, theirs in pairs):
                raise ValueError(
                    "columns must be pairs such as prompt=instruction (what a column is read as, "
                    f"then its name in the data), got {self.columns!r}"
                )
            given = {ours: theirs for ours, _, theirs in pairs}
        renamed = {str(theirs): str(ours) for ours, theirs in given.items()}
        if len(renamed) < len(given):
            raise ValueError(f"columns: one column cannot be read as two, got {self.columns!r}")
        return renamed

    def _check_several(self) -> None:
        _check_list("datasets", self.datasets)
        if self.columns is not None:
            raise ValueError("columns is of one dataset; give each entry of datasets its rename")
        if self.dataset_name is not None:
            raise ValueError(
                f"give dataset_name (here {self.dataset_name}) or datasets, not both; a dataset "
                "more is an entry more"
            )
        for option, key in (("dataset_config", "name"), ("dataset_train_split", "split")):
            if getattr(self, option) is not None:
                raise ValueError(f"{option} is of one dataset; give each entry its {key} instead")
        if self.dataset_streaming:
            raise ValueError(
                "datasets does not go with dataset_streaming: a stream has no number of rows for a "
                "weight to share out. Leave it out: rows are read from disk, not kept in memory"
            )

    @property
    def entries(self) -> list[DatasetEntry]:
        """The datasets of the run."""
        if self.datasets is not None:
            return [DatasetEntry.read(item) for item in self.datasets]
        named = (str(self.dataset_name), self.dataset_config, self.dataset_train_split)
        return [DatasetEntry(*named, rename=self.rename or None)]


def _check_list(option: str, items: Any) -> None:
    """Check that an option is a list of datasets, each with the keys that there are."""
    if not isinstance(items, list) or not items:
        raise ValueError(
            f"{option} must be a list of at least one dataset, each a path or a mapping such as "
            f"{{path: pairs.jsonl, weight: 0.5}}; got {items!r}"
        )
    for item in items:
        _ = DatasetEntry.read(item)  # raises for a wrong one


def load_splits(data_args: DataArguments, config: Any) -> tuple[Any, Any]:
    """Return the rows to train on, and those to evaluate on or None.

    Several datasets are lists of ``prefopt.data.WeightedDataset``; weights are of training alone.
    """
    evaluates = str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"
    if data_args.datasets is not None:
        return _load_several(data_args, config.seed, evaluates)
    (entry,) = data_args.entries
    load = partial(_load_one, entry, data_args.dataset_streaming)
    rows = load(entry.split)
    splits = dict(rows) if isinstance(rows, Mapping) else {}
    rows = train_split(rows, entry.path)
    if data_args.eval_datasets:
        return rows, _load_to_evaluate(data_args)
    if data_args.dataset_test_split:
        return rows, load(data_args.dataset_test_split)
    if data_args.eval_fraction or data_args.eval_rows:
        (size,) = _sizes(data_args, [rows])
        return _held_out(rows, size, config.seed, entry.label)
    if not evaluates:
        return rows, None
    if "test" not in splits:
        raise _nothing_to_evaluate(f" ({', '.join(splits)})" if splits else "")
    return rows, splits["test"]


def _load_one(entry: DatasetEntry, streaming: bool, split: str | None) -> Any:
    """Return the rows of a split of the one dataset, or all splits, as they are read."""
    return entry.renamed(entry.load_all(split, streaming=streaming))


def _load_several(data_args: DataArguments, seed: int, evaluates: bool) -> tuple[Any, Any]:
    from prefopt.data import WeightedDataset

    entries = data_args.entries
    rows = [entry.load() for entry in entries]
    held_out: list[WeightedDataset] | None = None
    if data_args.eval_datasets:
        held_out = _load_to_evaluate(data_args)
    elif data_args.dataset_test_split:
        split = data_args.dataset_test_split
        held_out = [WeightedDataset(entry.load(split), name=entry.label) for entry in entries]
    elif data_args.eval_fraction or data_args.eval_rows:
        # Of each dataset before its weight, so that no row is in both parts.
        parts = [
            _held_out(its, size, seed, entry.label)
            for its, size, entry in zip(rows, _sizes(data_args, rows), entries, strict=True)
        ]
        rows = [train for train, _ in parts]
        held_out = [
            WeightedDataset(test, name=entry.label)
            for (_, test), entry in zip(parts, entries, strict=True)
            if test is not None
        ]
    elif evaluates:
        raise _nothing_to_evaluate("")
    train = [
        WeightedDataset(its, entry.weight, entry.label)
        for its, entry in zip(rows, entries, strict=True)
    ]
    return train, held_out


def _load_to_evaluate(data_args: DataArguments) -> Any:
    """Return the datasets that are evaluated on beside those of training."""
    from prefopt.data import WeightedDataset

    entries = [DatasetEntry.read(item) for item in data_args.eval_datasets or []]
    return [WeightedDataset(entry.load(), name=entry.label) for entry in entries]


def _sizes(data_args: DataArguments, rows: list[Any]) -> list[float]:
    """Return what to hold out of each dataset: a share of its rows, or their number.

    Raises:
        UserError: If a number of rows leaves none to train on.
    """
    if not data_args.eval_rows:
        return [data_args.eval_fraction] * len(rows)
    ends = [0, *accumulate(map(len, rows))]
    if data_args.eval_rows >= ends[-1]:
        raise UserError(
            f"--eval_rows {data_args.eval_rows} leaves none of {ends[-1]} rows to train on"
        )
    upto = [round(data_args.eval_rows * end / ends[-1]) for end in ends]
    return [last - first for first, last in pairwise(upto)]


def train_split(rows: Any, name: str) -> Any:
    """Return the rows to train on, of a dataset that may have several splits."""
    if not isinstance(rows, Mapping):
        return rows
    if "train" not in rows:
        raise UserError(
            f"{name} has no split 'train'; give --dataset_train_split, or split of an entry of "
            f"datasets, one of: {', '.join(rows)}"
        )
    return rows["train"]


def _held_out(rows: Any, size: float, seed: int, label: str) -> tuple[Any, Any]:
    """Return the rows to train on, and a share or a number of them that is held out."""
    if not size:
        return rows, None
    try:
        parts = rows.train_test_split(size, seed=seed)
    except ValueError:
        raise UserError(
            f"{label} has too few rows ({len(rows)}) to hold out {size:g} of them; leave out "
            "--eval_fraction or --eval_rows, or name a split with --dataset_test_split"
        ) from None
    return parts["train"], parts["test"]


def _nothing_to_evaluate(found: str) -> UserError:
    return UserError(
        "eval_strategy asks for evaluations, but there are no rows for them: name a split "
        f"with --dataset_test_split{found}, or hold rows out with --eval_fraction 0.1"
    )


def _number(path: str, weight: Any) -> float:
    if weight is None:
        return 1.0
    try:  # YAML reads 1e-1 as text
        return float(weight)
    except (TypeError, ValueError):
        raise ValueError(f"the weight of {path} must be a number, got {weight!r}") from None
