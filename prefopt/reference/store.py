"""Where the reference log-probs of one reference are kept and found: a file, memory, or both.

A run must not fail because of its cache: where the file cannot be used (a full disk, a folder that
cannot be written, a later version), values are kept in memory and a warning says so; a damaged file
is set aside, and what can be read of it is taken over.
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefopt.data.keys import completion_key
from prefopt.reference.database import (
    Database,
    DatabaseError,
    Floats,
    files_of,
)

logger = logging.getLogger("prefopt")

Ints = NDArray[np.int64]

FILE_NAME = "reference.sqlite"

# What SQLite says of a file that is not what it was (SQLITE_CORRUPT, SQLITE_NOTADB).
_DAMAGED = ("malformed", "not a database", "disk image")


class LogpStore(Protocol):
    """Per-token log-probs of completions under one reference, by key."""

    def get(self, prompt_ids: Ints, completion_ids: Ints) -> Floats | None:
        """Return the log-prob of each token of a completion; (n,), nats, or None if not known."""

    def look_up(self, keys: Sequence[bytes]) -> list[Floats | None]:
        """Return the log-probs of the completions of some keys; None for what is not known."""

    def add(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        """Keep log-probs of completions; what is known already stays as it is."""

    def finish(self) -> None:
        """Called after many were added."""


class MemoryStore:
    """Reference log-probs in memory, for one process."""

    def __init__(self) -> None:
        self._values: dict[bytes, Floats] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, prompt_ids: Ints, completion_ids: Ints) -> Floats | None:
        """See ``LogpStore``."""
        return self._values.get(completion_key(prompt_ids, completion_ids))

    def look_up(self, keys: Sequence[bytes]) -> list[Floats | None]:
        """See ``LogpStore``."""
        return [self._values.get(key) for key in keys]

    def add(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        """See ``LogpStore``."""
        for key, logps in values:
            self._values.setdefault(key, logps)

    def finish(self) -> None:
        """See ``LogpStore``."""


class FileStore:
    """Reference log-probs of one reference in a database; in memory what the file cannot take.

    Args:
        database: The file.
        fingerprint: Of the reference.
        facts: What the reference is, for people and for loading it again.
        origin: How the values that are added are computed.
    """

    def __init__(
        self,
        database: Database,
        fingerprint: str,
        facts: Mapping[str, Any],
        origin: Mapping[str, Any],
    ) -> None:
        self.database = database
        self.fingerprint = fingerprint
        self._facts = dict(facts)
        self._origin = dict(origin)
        self._memory = MemoryStore()
        self._writable = not database.readonly
        self._register()

    def _register(self) -> None:
        """Find or make the numbers under which the file knows reference and origin."""
        self._origin_id = 0
        try:
            self._reference = self.database.reference(self.fingerprint, self._facts)
            if self._writable:
                self._origin_id = self.database.origin(self._origin)
        except sqlite3.OperationalError as error:
            if is_damage(error):
                raise
            self._reference = self.database.reference(self.fingerprint)
            self._give_up_writing(error)

    def get(self, prompt_ids: Ints, completion_ids: Ints) -> Floats | None:
        """See ``LogpStore``; what lies on a damaged page is not known."""
        return self._find(completion_key(prompt_ids, completion_ids))

    def look_up(self, keys: Sequence[bytes]) -> list[Floats | None]:
        """See ``LogpStore``; what lies on a damaged page is not known."""
        return [self._find(key) for key in keys]

    def _find(self, key: bytes) -> Floats | None:
        if self._memory:
            (found,) = self._memory.look_up([key])
            if found is not None:
                return found
        if self._reference is None:
            return None
        try:
            return self.database.get(self._reference, self.fingerprint, key)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return None

    def add(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        """See ``LogpStore``; each call is one commit."""
        if self._writable:
            try:
                self._write(values)
                return
            except sqlite3.Error as error:
                self._give_up_writing(error)
        self._memory.add(values)

    def _write(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        try:
            self._put(values)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self.database = replaced(self.database)
            self._register()
            self._put(values)

    def _put(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        assert self._reference is not None  # a file that can be written has got one
        self.database.put(self._reference, self.fingerprint, self._origin_id, values)

    def _give_up_writing(self, error: Exception) -> None:
        self._writable = False
        logger.warning(
            "%s cannot be written (%s): further reference log-probs are kept in memory, for this "
            "run only. Free or name another folder with reference_cache_dir or PREFOPT_CACHE.",
            self.database.path,
            error,
        )

    def finish(self) -> None:
        """See ``LogpStore``: the log is moved into the file."""
        if self._writable:
            try:
                self.database.checkpoint()
            except sqlite3.Error as error:
                logger.debug("no checkpoint of %s: %s", self.database.path, error)


def default_folder() -> Path:
    """Return where the store lies: ``PREFOPT_CACHE``, else ``prefopt`` in the user's cache."""
    chosen = os.environ.get("PREFOPT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "prefopt"


def open_database(folder: Path) -> Database | None:
    """Return the database of a folder, made or repaired if need be; None if none can be used.

    Warns where it is not a plain file that can be read and written.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _opened(path)
    except DatabaseError as error:
        problem: Exception = error
    except (sqlite3.Error, OSError) as error:
        if path.is_file() and not _can_write(path):
            return _open_readonly(path, error)
        problem = error
    logger.warning(
        "reference log-probs are kept in memory, for this run only: %s. Name another folder with "
        "reference_cache_dir or PREFOPT_CACHE.",
        problem,
    )
    return None


def _opened(path: Path) -> Database:
    """Return the database of a file; one that is damaged beyond opening is set aside first."""
    try:
        return Database(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        set_aside(path)
        return Database(path)


def _can_write(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _open_readonly(path: Path, error: Exception) -> Database | None:
    logger.warning(
        "%s cannot be written (%s): what it holds is used, and further reference log-probs are "
        "kept in memory, for this run only.",
        path,
        error,
    )
    try:
        return Database(path, readonly=True)
    except (sqlite3.Error, DatabaseError) as second:
        logger.warning("%s cannot be read either: %s", path, second)
        return None


# Damage -------------------------------------------------------------------------------------------


def is_damage(error: Exception) -> bool:
    """Whether an error of SQLite says that the file is not what it was."""
    return isinstance(error, sqlite3.DatabaseError) and any(sign in str(error) for sign in _DAMAGED)


def set_aside(path: Path) -> Path:
    """Rename a damaged file, its log with it, so that a new one can take its place."""
    moved = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    for file in files_of(path):
        if file.exists():
            file.rename(moved.with_name(moved.name + file.name[len(path.name) :]))
    logger.warning(
        "%s is damaged; it was set aside as %s, and what is missing is computed again", path, moved
    )
    return moved


def replaced(database: Database) -> Database:
    """Return a new database in the place of a damaged one, with all that can still be read."""
    path = database.path
    database.close()
    moved = set_aside(path)
    fresh = Database(path)
    try:
        kept = _salvage(Database(moved), fresh)
    except (sqlite3.Error, DatabaseError):
        kept = 0
    logger.warning("%d completions could be taken over from %s", kept, moved.name)
    return fresh


def _salvage(damaged: Database, fresh: Database) -> int:
    """Copy what can be read and has the right checksum, key range by key range."""
    connection = damaged.connection
    kept = 0
    origin = fresh.origin({"copied from": damaged.path.name})
    references = connection.execute("SELECT id, fingerprint, facts FROM reference").fetchall()
    for number, fingerprint, facts in references:
        reference = fresh.reference(fingerprint, json.loads(facts))
        assert reference is not None
        for first in range(256):
            values = list(_readable(damaged, number, fingerprint, first))
            kept += fresh.put(reference, fingerprint, origin, values)
    return kept


def _readable(
    damaged: Database, reference: int, fingerprint: str, first: int
) -> Iterable[tuple[bytes, Floats]]:
    """Yield the values whose key begins with a byte, up to the first damaged page of the index."""
    end = bytes([first + 1]) if first < 255 else b"\xff" * 17
    try:
        keys = damaged.connection.execute(
            "SELECT key FROM completion WHERE reference = ? AND key >= ? AND key < ?",
            (reference, bytes([first]), end),
        ).fetchall()
    except sqlite3.DatabaseError:
        return
    for (key,) in keys:
        try:
            logps = damaged.get(reference, fingerprint, key)
        except sqlite3.DatabaseError:
            continue
        if logps is not None:
            yield key, logps
