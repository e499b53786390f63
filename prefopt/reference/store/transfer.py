"""A store as a parquet file, to be shared, and back.

One row for each completion; `datasets` reads it as it is, and what it writes is read here:

- ``fingerprint`` (string): of the reference; 32 hexadecimal digits.
- ``key`` (string): of prompt and completion; 32 hexadecimal digits.
- ``logps`` (list of float32): of each token of the completion; nats.
- ``tokens`` (int32): how many they are.
- ``checksum`` (int32): CRC-32 of fingerprint, key and log-probs, as in the store.
- ``origin`` (string): how they were computed, as JSON.
- ``facts`` (string): what the reference is, as JSON; once in a row group, else null.
- ``version`` (int32): of this format.

There is nothing in the metadata of the file, which the tools of the Hub do not keep.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefopt.reference.fingerprint import as_json
from prefopt.reference.store.database import Database, Floats, checksum_of
from prefopt.reference.store.maintain import ReferenceInfo, entries_of, origins_of

FORMAT = 1

SCHEMA = pa.schema(
    [
        ("fingerprint", pa.string()),
        ("key", pa.string()),
        ("logps", pa.list_(pa.float32())),
        ("tokens", pa.int32()),
        ("checksum", pa.int32()),
        ("origin", pa.string()),
        ("facts", pa.string()),
        ("version", pa.int32()),
    ]
)

# A row group has no more than these, so that memory stays flat on both sides.
_MOST_ROWS = 4096
_MOST_TOKENS = 1 << 22

_DIGEST = re.compile("[0-9a-f]{32}")


class TransferError(ValueError):
    """A file that cannot be imported."""


class Exported(NamedTuple):
    """What was written.

    Attributes:
        completions: How many are in the file.
        damaged: Those in the store that did not match their checksum and were left out.
        size_bytes: Of the file.
    """

    completions: int
    damaged: int
    size_bytes: int


class Imported(NamedTuple):
    """What was read.

    Attributes:
        added: Completions that the store did not have.
        known: Completions that it had; they stay as they were.
        refused: Rows that do not match their checksum, or are not of this format.
        references: Fingerprints in the files.
    """

    added: int
    known: int
    refused: int
    references: frozenset[str]


# Out ----------------------------------------------------------------------------------------------


def export_store(database: Database, references: Sequence[ReferenceInfo], path: Path) -> Exported:
    """Write log-probs to a parquet file, in the order of fingerprints and keys.

    Args:
        database: Where from.
        references: Which of its references.
        path: The file; it appears when it is complete.

    Raises:
        FileExistsError: If there is such a file.
        OSError: If it cannot be written.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; name another file, or remove it first")
    partial = path.with_name(path.name + ".partial")
    completions = damaged = 0
    try:
        with pq.ParquetWriter(
            partial, SCHEMA, compression="zstd", use_dictionary=["fingerprint", "origin", "facts"]
        ) as writer:
            for info in sorted(references, key=lambda info: info.fingerprint):
                for table, lost in _tables(database, info):
                    writer.write_table(table)
                    completions += len(table)
                    damaged += lost
        partial.rename(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return Exported(completions, damaged, path.stat().st_size)


def _tables(database: Database, info: ReferenceInfo) -> Iterator[tuple[pa.Table, int]]:
    """Yield what a store has of a reference as row groups, and how much of each was damaged."""
    origins = {number: as_json(origin) for number, origin in origins_of(database).items()}
    facts = as_json(info.facts)
    rows: list[tuple[bytes, Floats, str]] = []
    tokens = damaged = 0
    for entries in entries_of(database, info.number):
        for key, origin in entries:
            logps = database.get(info.number, info.fingerprint, key)
            if logps is None:
                damaged += 1
                continue
            rows.append((key, logps, origins.get(origin, "{}")))
            tokens += len(logps)
            if len(rows) == _MOST_ROWS or tokens >= _MOST_TOKENS:
                yield _table(info.fingerprint, facts, rows), damaged
                rows, tokens, damaged = [], 0, 0
    if rows or damaged:
        yield _table(info.fingerprint, facts, rows), damaged


def _table(fingerprint: str, facts: str, rows: Sequence[tuple[bytes, Floats, str]]) -> pa.Table:
    count = len(rows)
    lengths = [len(logps) for _, logps, _ in rows]
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    values = np.concatenate([*(logps for _, logps, _ in rows), np.zeros(0, dtype=np.float32)])
    return pa.table(
        {
            "fingerprint": [fingerprint] * count,
            "key": [key.hex() for key, _, _ in rows],
            "logps": pa.ListArray.from_arrays(ends, pa.array(values, pa.float32())),
            "tokens": lengths,
            "checksum": [checksum_of(fingerprint, key, logps) for key, logps, _ in rows],
            "origin": [origin for _, _, origin in rows],
            "facts": [facts] * min(1, count) + [None] * (count - 1),
            "version": [FORMAT] * count,
        },
        schema=SCHEMA,
    )


# In -----------------------------------------------------------------------------------------------


def parquet_files(path: Path) -> list[Path]:
    """Return the files to import: the path, or those in a folder and below.

    Raises:
        FileNotFoundError: If there are none.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"no parquet file in {path}" if files == [] else f"no file {path}")
    return files


def import_store(database: Database, path: Path) -> Imported:
    """Add the log-probs of parquet files to a store; what it knows already stays as it is.

    Each part is a commit: after an error, importing again continues where it stopped.

    Args:
        database: Where to.
        path: A file, or a folder with some.

    Raises:
        FileNotFoundError: If there is no file.
        TransferError: If a file is not of this format, or of another version of it: before
            anything is added.
    """
    files = parquet_files(path)
    facts: dict[str, dict[str, Any]] = {}
    for file in files:
        _check_format(file)
        facts |= _facts_in(file)
    parts = [
        _import_batch(database, batch, facts)
        for file in files
        for batch in _record_batches(file, SCHEMA.names)
    ]
    return Imported(
        added=sum(part.added for part in parts),
        known=sum(part.known for part in parts),
        refused=sum(part.refused for part in parts),
        references=frozenset().union(*(part.references for part in parts)),
    )


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a file; whatever arrow raises becomes one kind of error."""
    try:
        with pq.ParquetFile(file, pre_buffer=False) as opened:  # which would hold the whole file
            yield opened
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TransferError(f"{file} is no parquet file, or is damaged: {error}") from error


def _record_batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a file, in parts."""
    with _opened(file) as opened:
        for group in range(opened.num_row_groups):  # together, they would be joined to batches
            for batch in opened.iter_batches(_MOST_ROWS, [group], list(columns)):
                batch.validate(full=True)  # offsets and text may be anything in a foreign file
                yield batch


def _check_format(file: Path) -> None:
    """Refuse a file whose columns, or whose version, are not those of this format."""
    with _opened(file) as opened:
        found = opened.schema_arrow
    for field in SCHEMA:
        if field.name not in found.names:
            raise TransferError(
                f"{file} is no export of reference log-probs: it has no column {field.name!r}"
            )
        if not _alike(found.field(field.name).type, field.type):
            raise TransferError(
                f"{file}: the column {field.name!r} is {found.field(field.name).type}, not "
                f"{field.type}"
            )
    for batch in _record_batches(file, ["version"]):
        others = set(batch.column(0).unique().to_pylist()) - {FORMAT}
        if others:
            raise TransferError(
                f"{file} has rows of format {others.pop()}; this version of prefopt reads {FORMAT}"
            )


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a type holds the same values bit by bit: offsets may be wider."""
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(is_list and found.value_type == wanted.value_type)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(found == wanted)


def _facts_in(file: Path) -> dict[str, dict[str, Any]]:
    """Return what a file says of its references, by fingerprint."""
    facts = {}
    for batch in _record_batches(file, ["fingerprint", "facts"]):
        told = batch.filter(batch.column("facts").is_valid())
        for fingerprint, text in zip(*(column.to_pylist() for column in told.columns), strict=True):
            facts[fingerprint] = _json_object(text) or {}
    return facts


def _import_batch(
    database: Database, batch: pa.RecordBatch, facts: dict[str, dict[str, Any]]
) -> Imported:
    rows = list(_checked_rows(batch))
    good = sorted((row for row in rows if row is not None), key=lambda row: row[:2])  # stable
    added = 0
    for (fingerprint, origin), group in groupby(good, key=lambda row: row[:2]):
        reference = database.reference(fingerprint, facts.get(fingerprint, {}))
        assert reference is not None  # the file can be written
        number = database.origin(_json_object(origin) or {})
        values = ((key, logps) for _, _, key, logps in group)
        added += database.put(reference, fingerprint, number, values)
    return Imported(
        added=added,
        known=len(good) - added,
        refused=len(rows) - len(good),
        references=frozenset(row[0] for row in good),
    )


def _checked_rows(batch: pa.RecordBatch) -> Iterator[tuple[str, str, bytes, Floats] | None]:
    """Yield fingerprint, origin, key and log-probs of each row; None for a row that is refused."""
    lists = batch.column("logps")
    values = lists.values.to_numpy(zero_copy_only=False)  # of all rows, those before an offset too
    offsets = lists.offsets.to_numpy()
    is_list = lists.is_valid().to_numpy(zero_copy_only=False)
    plain = {
        name: batch.column(name).to_pylist()
        for name in ("fingerprint", "key", "tokens", "checksum", "origin")
    }
    for row, (fingerprint, key, tokens, checksum, origin) in enumerate(
        zip(*plain.values(), strict=True)
    ):
        logps = values[offsets[row] : offsets[row + 1]]
        good = (
            _is_digest(fingerprint)
            and _is_digest(key)
            and is_list[row]
            and len(logps) == tokens
            and _json_object(origin) is not None
            and checksum_of(fingerprint, bytes.fromhex(key), logps) == checksum
        )
        yield (fingerprint, origin, bytes.fromhex(key), logps) if good else None


def _is_digest(text: str | None) -> bool:
    return text is not None and _DIGEST.fullmatch(text) is not None


def _json_object(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
