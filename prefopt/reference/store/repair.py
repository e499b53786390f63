"""What becomes of a damaged file of reference log-probs: it is set aside, what can be read is kept.

Nothing here is needed for values to be right: each has a checksum. It is needed for a run to go on,
and not to compute all again.
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefopt.reference.store.database import Database, DatabaseError, Floats, files_of

logger = logging.getLogger("prefopt")

# What SQLite says of a file that is not what it was (SQLITE_CORRUPT, SQLITE_NOTADB), and Python of
# text in one.
_SIGNS = ("malformed", "not a database", "disk image", "Could not decode")


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is not what it was.

    Numbers that are taken already, or too large, are ones that this program never writes.
    """
    if isinstance(error, sqlite3.IntegrityError | OverflowError):
        return True
    return isinstance(error, sqlite3.DatabaseError) and any(sign in str(error) for sign in _SIGNS)


def set_aside(path: Path, reason: str) -> Path:
    """Rename a file that cannot be used, its log with it, so that a new one can take its place.

    Args:
        path: The file.
        reason: Why it cannot be used, for people.

    Raises:
        OSError: If the folder cannot be written.
    """
    moved = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    # The log first: one that lies beside a new file might be taken for its own.
    for file in reversed(files_of(path)):
        with suppress(FileNotFoundError):
            file.rename(moved.with_name(moved.name + file.name[len(path.name) :]))
    logger.warning(
        "%s cannot be used any more (%s); it was set aside as %s, and what is missing is computed "
        "again",
        path,
        reason,
        moved.name,
    )
    return moved


def repair(database: Database, fingerprint: str) -> None:
    """Put a new file in the place of a damaged one, with all that can still be read.

    Args:
        database: Opened on the damaged file; afterwards on the new one, or on that which another
            process has put there.
        fingerprint: Of a reference whose values are looked for even where the file no longer says
            under which number they are.

    Raises:
        OSError: If the folder cannot be written.
        sqlite3.Error: If the new file cannot be.
    """
    if not database.in_place():
        database.reopen()
        return
    database.close()
    moved = set_aside(database.path, "it is damaged")
    database.reopen()
    kept = 0
    with suppress(sqlite3.Error, DatabaseError):
        damaged = Database(moved)
        try:
            kept = _salvage(damaged, database, fingerprint)
        finally:
            damaged.close()
    logger.warning("%d completions could be taken over from %s", kept, moved.name)


def _salvage(damaged: Database, fresh: Database, fingerprint: str) -> int:
    """Copy what can be read and has the right checksum, key range by key range."""
    kept = 0
    origin = fresh.origin({"copied from": damaged.path.name})
    for number, name, facts in _references(damaged, fingerprint):
        reference = None
        for first in range(256):
            values = list(_readable(damaged, number, name, first))
            if values and reference is None:
                reference = fresh.reference(name, facts)
            if reference is not None:
                kept += fresh.put(reference, name, origin, values)
    return kept


def _references(damaged: Database, fingerprint: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Return number, fingerprint and facts of the references that the file has values of.

    Those whose name is lost may be the one with the fingerprint: checksums tell.
    """
    connection = damaged.connection
    connection.text_factory = lambda text: text.decode(errors="replace")
    named: dict[int, tuple[Any, Any]] = {}
    with suppress(sqlite3.DatabaseError):
        for number, *rest in connection.execute("SELECT id, fingerprint, facts FROM reference"):
            named[number] = tuple(rest)
    found = []
    for number in sorted(named.keys() | set(_numbers(connection))):
        name, facts = named.get(number, (fingerprint, "{}"))
        try:
            found.append((number, str(name), dict(json.loads(facts))))
        except (TypeError, ValueError):
            found.append((number, str(name), {}))
    return found


def _numbers(connection: sqlite3.Connection) -> Iterator[int]:
    """Yield the numbers of references that the index of completions knows."""
    number = 0
    with suppress(sqlite3.DatabaseError):
        while isinstance(number, int):
            (number,) = connection.execute(
                "SELECT min(reference) FROM completion WHERE reference > ?", (number,)
            ).fetchone()
            if isinstance(number, int):
                yield number


def _readable(
    damaged: Database, reference: int, fingerprint: str, first: int
) -> Iterator[tuple[bytes, Floats]]:
    """Yield values whose key begins with a byte, but for those on a damaged page of their index.

    It is come to from both sides.
    """
    keys: set[bytes] = set()
    for which in ("min", "max"):
        with suppress(sqlite3.DatabaseError):
            keys.update(_keys(damaged.connection, reference, first, which))
            break  # nothing is damaged here
    for key in keys:
        with suppress(sqlite3.DatabaseError):
            logps = damaged.get(reference, fingerprint, key)
            if logps is not None:
                yield key, logps


def _keys(
    connection: sqlite3.Connection, reference: int, first: int, which: str
) -> Iterator[bytes]:
    """Yield the keys that begin with a byte, from the least (``min``) or from the greatest.

    One at a time: of many, Python's sqlite3 loses the last before an error.
    """
    low, high = bytes([first]), bytes([first + 1]) if first < 255 else b"\xff" * 17
    seen: set[bytes] = set()
    while True:
        (key,) = connection.execute(
            f"SELECT {which}(key) FROM completion WHERE reference = ? AND key > ? AND key < ?",
            (reference, low, high),
        ).fetchone()
        if not isinstance(key, bytes) or key in seen:  # there are no more, or they are in disorder
            return
        yield key
        seen.add(key)
        low, high = (key, high) if which == "min" else (low, key)
