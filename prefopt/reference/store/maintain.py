"""What a store holds, by reference, and deleting references from it."""

import json
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.reference.store.database import Database, DatabaseError, files_of
from prefopt.reference.store.logp_store import FILE_NAME
from prefopt.reference.store.repair import is_damage

# Bytes that a completion takes beside its values; only shares of the file are made of it.
_COMPLETION_BYTES = 70

# Completions that are read at a time.
_CHUNK = 4096

# Completions that are deleted in one commit: each commit writes most of the index again.
_DELETE_CHUNK = 1 << 16

_DAY_S = 86_400


@dataclass(frozen=True)
class ReferenceInfo:
    """What a store holds of one reference.

    Attributes:
        number: Of the reference in this file.
        fingerprint: What determines its scores.
        facts: What it is, for people.
        created: When it was first seen; seconds since 1970.
        used: When a run last asked for it; seconds since 1970.
        completions: How many have log-probs.
        tokens: Of these completions.
        size_bytes: Its approximate share of the file.
        origins: How the values were computed, each with the number of ``completions``.
    """

    number: int
    fingerprint: str
    facts: dict[str, Any]
    created: float
    used: float
    completions: int
    tokens: int
    size_bytes: int
    origins: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        path: The file.
        size_bytes: Of the file and its log.
        free_bytes: Free space in the file, left by deletions and used again before it grows.
        version: Of its schema.
        references: What it has of each, the last used first.
        set_aside: Damaged files that a run renamed.
    """

    path: Path
    size_bytes: int
    free_bytes: int
    version: int
    references: tuple[ReferenceInfo, ...]
    set_aside: tuple[Path, ...]


class Entry(NamedTuple):
    """A completion as the store knows it: its key, and the number of how it was computed."""

    key: bytes
    origin: int


def open_store(folder: Path, readonly: bool = False) -> Database:
    """Return the database of a folder as it is: nothing is created, repaired or set aside.

    Args:
        folder: Where the store lies.
        readonly: Whether it will only be read: then a file that cannot be written is opened too.

    Raises:
        FileNotFoundError: If there is no store in the folder.
        DatabaseError: If it is of a later version or of another program.
        sqlite3.Error: If it cannot be opened, or is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no store of reference log-probs in {folder}; `prefopt train` and "
            "`prefopt cache fill` make one"
        )
    try:
        return Database(path)
    except sqlite3.OperationalError:
        if not readonly:
            raise
        return Database(path, readonly=True)


def explain(error: Exception, path: Path) -> str:
    """Return what an error from opening, reading or writing a store means for its user."""
    if isinstance(error, DatabaseError):
        return str(error)
    if is_damage(error):
        return (
            f"{path} is damaged ({error}); `prefopt cache verify` says how far; the next run that "
            "writes to it sets it aside and starts a new one"
        )
    if "full" in str(error):
        return f"the disk of {path} is full; what was committed before is kept"
    if "readonly" in str(error) or "unable to open" in str(error):
        return f"{path} cannot be opened for writing ({error})"
    if "locked" in str(error):
        return f"another process is writing to {path}; try again when it is done"
    return f"{path}: {error}"


# What it holds ------------------------------------------------------------------------------------


def describe_store(database: Database) -> StoreInfo:
    """Return what a store holds; counted from its index, in seconds for millions."""
    files = [file for file in files_of(database.path) if file.exists()]
    page, free = (database.pragma(name) for name in ("page_size", "freelist_count"))
    return StoreInfo(
        path=database.path,
        size_bytes=sum(file.stat().st_size for file in files if not file.name.endswith("-shm")),
        free_bytes=page * free,
        version=database.pragma("user_version"),
        references=tuple(references_of(database)),
        set_aside=tuple(sorted(database.path.parent.glob(f"{database.path.name}.damaged-*"))),
    )


def references_of(database: Database) -> list[ReferenceInfo]:
    """Return what a store holds of each reference, the last used first."""
    rows = database.connection.execute(
        "SELECT id, fingerprint, facts, created, used FROM reference ORDER BY used DESC, id DESC"
    ).fetchall()
    origins = origins_of(database)
    completions: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    computed: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, origin, count, length in database.connection.execute(
        "SELECT reference, origin, count(*), sum(tokens) FROM completion GROUP BY 1, 2"
    ):
        completions[number] += count
        tokens[number] += length
        computed[number].append(origins.get(origin, {}) | {"completions": count})
    pages = database.pragma("page_count") - database.pragma("freelist_count")
    weight = 4 * tokens.total() + _COMPLETION_BYTES * completions.total()
    per_weight = database.pragma("page_size") * pages / max(1, weight)
    return [
        ReferenceInfo(
            number=number,
            fingerprint=fingerprint,
            facts=json.loads(facts),
            created=created,
            used=used,
            completions=completions[number],
            tokens=tokens[number],
            size_bytes=round(
                per_weight * (4 * tokens[number] + _COMPLETION_BYTES * completions[number])
            ),
            origins=tuple(computed[number]),
        )
        for number, fingerprint, facts, created, used in rows
    ]


def origins_of(database: Database) -> dict[int, dict[str, Any]]:
    """Return how values were computed, by the number that the file has for it."""
    rows = database.connection.execute("SELECT id, facts FROM origin")
    return {number: json.loads(facts) for number, facts in rows}


def entries_of(database: Database, reference: int) -> Iterator[list[Entry]]:
    """Yield what a store has of a reference in the order of the keys, some thousands at a time.

    Each part is a query of its own, so that reading does not make writers wait.
    """
    last = b""
    while True:
        entries = [
            Entry(*row)
            for row in database.connection.execute(
                "SELECT key, origin FROM completion WHERE reference = ? AND key > ? "
                "ORDER BY key LIMIT ?",
                (reference, last, _CHUNK),
            )
        ]
        if not entries:
            return
        yield entries
        last = entries[-1].key


def find_reference(references: Sequence[ReferenceInfo], prefix: str) -> ReferenceInfo:
    """Return the reference whose fingerprint begins with some digits.

    Raises:
        ValueError: If there is none, or if there are several.
    """
    found = [info for info in references if prefix and info.fingerprint.startswith(prefix.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(info.fingerprint for info in found)
        raise ValueError(f"{prefix!r} is the beginning of {len(found)} fingerprints: {names}")
    known = ", ".join(info.fingerprint[:12] for info in references[:20]) or "none"
    raise ValueError(f"no fingerprint in the store begins with {prefix!r}; there are: {known}")


# Deleting -----------------------------------------------------------------------------------------


def choose_to_prune(
    references: Sequence[ReferenceInfo],
    *,
    prefixes: Sequence[str] = (),
    unused_days: float | None = None,
    max_bytes: int | None = None,
    now: float | None = None,
) -> list[ReferenceInfo]:
    """Return the references that any of the conditions names, the longest unused first.

    These are: a beginning of its fingerprint; that no run has asked for it in ``unused_days``; that
    it is of the longest unused, without which the rest takes at most ``max_bytes``. ``now`` is in
    seconds since 1970; None for the time it is.

    Raises:
        ValueError: If a prefix is of no reference, or of several.
    """
    now = time.time() if now is None else now
    chosen = {find_reference(references, prefix).number for prefix in prefixes}
    if unused_days is not None:
        chosen |= {info.number for info in references if info.used < now - unused_days * _DAY_S}
    oldest_first = sorted(references, key=lambda info: info.used)
    if max_bytes is not None:
        left = sum(info.size_bytes for info in references if info.number not in chosen)
        for info in oldest_first:
            if left > max_bytes and info.number not in chosen:
                chosen.add(info.number)
                left -= info.size_bytes
    return [info for info in oldest_first if info.number in chosen]


def delete_reference(database: Database, info: ReferenceInfo) -> None:
    """Delete all that a store has of a reference, in several commits.

    The file keeps its size: see ``shrink``.
    """
    while True:
        with database.writing() as connection:
            # In the order of the file: keys are random, and would touch every page each time.
            rows = connection.execute(
                "SELECT first, tokens, key FROM completion WHERE reference = ? "
                "ORDER BY first LIMIT ?",
                (info.number, _DELETE_CHUNK),
            ).fetchall()
            if not rows:
                connection.execute("DELETE FROM reference WHERE id = ?", (info.number,))
                connection.execute("DELETE FROM loaded WHERE fingerprint = ?", (info.fingerprint,))
                return
            connection.execute("DELETE FROM known WHERE reference = ?", (info.number,))
            database.delete_pieces((first, tokens) for first, tokens, _ in rows)
            connection.executemany(
                "DELETE FROM completion WHERE reference = ? AND key = ?",
                sorted((info.number, key) for _, _, key in rows),
            )


def shrink(database: Database) -> int:
    """Give the space of what was deleted back to the disk; return the size of the file, bytes.

    While it works it needs free space for up to twice what is left. While another process
    reads, the file keeps its size; it shrinks when the last reader has closed it.

    Raises:
        sqlite3.OperationalError: If the disk is full; the store is then as it was.
    """
    database.connection.execute("VACUUM")
    database.checkpoint()
    return database.path.stat().st_size
