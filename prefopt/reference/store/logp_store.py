"""Where the log-probs of one reference are kept: in a file, in memory, or in both.

A run must not fail because of its cache: where the file cannot be used (a full disk, a folder that
cannot be written, a later version), values are kept in memory and a warning says so; a damaged file
is set aside, and a new one is started.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from prefopt.reference.store.database import Database, DatabaseError, Floats, OlderVersionError
from prefopt.reference.store.repair import is_damage, replace_damaged, set_aside

logger = logging.getLogger("prefopt")

FILE_NAME = "reference.sqlite"


class LogpStore(Protocol):
    """Per-token log-probs of completions under one reference, by key.

    Attributes:
        replaced: Whether the store lost what it had, and began anew.
    """

    replaced: bool

    def look_up(self, keys: Sequence[bytes]) -> list[Floats | None]:
        """Return the log-probs of the completions of some keys; None for what is not known."""

    def add(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        """Keep log-probs of completions; what is known already stays as it is."""

    def finish(self) -> None:
        """Called after many were added."""


class MemoryStore:
    """Reference log-probs in memory, for one process."""

    replaced = False

    def __init__(self) -> None:
        self._values: dict[bytes, Floats] = {}

    def __len__(self) -> int:
        return len(self._values)

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

    Attributes:
        replaced: Whether the file was damaged and a new one was started: what this store had found
            before may be missing.
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
        self.replaced = False
        self._told_unreadable = False
        self._reference: int | None = None
        self._origin_id = 0
        if self._try_to_write(self._register):
            return
        try:  # in a file that cannot be written
            self._reference = database.reference(fingerprint)
        except sqlite3.DatabaseError as error:
            self._warn_unreadable(error)

    @property
    def in_memory(self) -> int:
        """How many completions are kept in memory, for this run only."""
        return len(self._memory)

    def _register(self) -> None:
        """Find or make the numbers under which the file knows reference and origin."""
        self._reference = self.database.reference(self.fingerprint, self._facts)
        self._origin_id = self.database.origin(self._origin)

    def look_up(self, keys: Sequence[bytes]) -> list[Floats | None]:
        """See ``LogpStore``; what lies on a damaged page is not known."""
        return [self._find(key) for key in keys]

    def _find(self, key: bytes) -> Floats | None:
        (found,) = self._memory.look_up([key])
        if found is not None or self._reference is None:
            return found
        try:
            return self.database.get(self._reference, self.fingerprint, key)
        except sqlite3.DatabaseError as error:
            self._warn_unreadable(error)
            return None

    def add(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        """See ``LogpStore``; each call is one commit."""
        if not self._try_to_write(partial(self._put, values)):
            self._memory.add(values)

    def _put(self, values: Sequence[tuple[bytes, Floats]]) -> None:
        assert self._reference is not None  # a file that can be written has got one
        self.database.put(self._reference, self.fingerprint, self._origin_id, values)

    def _try_to_write(self, write: Callable[[], None]) -> bool:
        """Write to the file, or to a new one if it is damaged; False if that cannot be done."""
        if not self._writable:
            return False
        try:
            try:
                write()
            except (sqlite3.DatabaseError, OverflowError) as error:
                if self.replaced or not is_damage(error):
                    raise
                self.replaced = True
                replace_damaged(self.database, str(error))
                self._register()
                write()
        except (sqlite3.Error, DatabaseError, OSError, OverflowError) as error:
            self._writable = False
            logger.warning(
                "%s cannot be written (%s): further reference log-probs are kept in memory, for "
                "this run only. Free or name another folder with reference_cache_dir or "
                "PREFOPT_CACHE.",
                self.database.path,
                error,
            )
        return self._writable

    def _warn_unreadable(self, error: Exception) -> None:
        if not self._told_unreadable:
            self._told_unreadable = True
            logger.warning(
                "%s cannot be read everywhere (%s): what is missing is computed again",
                self.database.path,
                error,
            )

    def knows_all_of(self, dataset: str) -> bool:
        """Whether the file had all of a dataset, told by a digest, and lost nothing since."""
        return self._reference is not None and self.database.knows_all_of(self._reference, dataset)

    def remember_all_of(self, dataset: str) -> None:
        """Keep that the file has all of a dataset, unless some of it is in memory only."""
        if self._reference is not None and not self.in_memory:
            self.database.remember_all_of(self._reference, dataset)

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
    """Return the database of a folder, made if need be; None if none can be used.

    Warns where it is not a plain file that can be read and written.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _opened(path)
    except DatabaseError as error:
        problem: Exception = error
    except (sqlite3.Error, OSError) as error:
        readonly = _open_readonly(path, error)
        if readonly is not None:
            return readonly
        problem = error
    logger.warning(
        "reference log-probs are kept in memory, for this run only: %s cannot be used (%s). Name "
        "another folder with reference_cache_dir or PREFOPT_CACHE.",
        path,
        problem,
    )
    return None


def _opened(path: Path) -> Database:
    """Return the database of a file; what cannot be opened, or is older, is set aside first."""
    try:
        return Database(path)
    except (OlderVersionError, sqlite3.DatabaseError) as error:
        if not isinstance(error, OlderVersionError) and not is_damage(error):
            raise
        set_aside(path, str(error))
    return Database(path)


def _open_readonly(path: Path, error: Exception) -> Database | None:
    """Return what there is of a database that cannot be opened for writing; None for nothing."""
    try:
        if not path.stat().st_size:
            return None
        database = Database(path, readonly=True)
    except (sqlite3.Error, DatabaseError, OSError):
        return None
    logger.warning(
        "%s cannot be written (%s): what it holds is used, and further reference log-probs are "
        "kept in memory, for this run only.",
        path,
        error,
    )
    return database
