"""The file of reference log-probs: an SQLite database that any number of processes share.

Schema, version 1 (``application_id`` "prfo", ``user_version`` 1):

- ``reference``: one row for each fingerprint; ``facts`` is JSON, for people and for loading again.
- ``origin``: how values were computed, as JSON: device, dtype, layout, attention, versions.
- ``completion``: ``(reference, key)`` to the first piece, the number of tokens, a CRC-32, origin.
- ``piece``: up to 252 log-probs, float32, little-endian; a completion's pieces have consecutive
  ids.
- ``file``: digests of files, valid while size, times and inode are what they were.
- ``loaded``: which fingerprint the model had that was loaded from some files with some options.
- ``known``: datasets of which all is known, by a digest, and how many completions the reference had
  then. Files of before 0.2 get it when they are opened.

Keys are random, so the index fills its pages to some 70%; log-probs are appended, and pieces keep
pages full whatever the length of a completion. Measured, all in all: 50 bytes for a completion of
one token, 5.0 bytes a token for those of HH (53 tokens on average), 4.1 for such of 2000.

An older file is set aside, and a newer one is left alone and not used.

A value is bound to its key by a CRC-32 over fingerprint, key and values: a damaged page makes it
unknown, and never wrong. Commits are atomic (write-ahead log): a kill loses the current commit, and
a power cut at most the last few. WAL needs a file system with shared memory: local disks, not
NFS.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from prefopt.reference.fingerprint import as_json

Floats = NDArray[np.float32]

APPLICATION_ID = 0x7072666F  # "prfo"
VERSION = 1
PAGE_BYTES = 8192
PIECE_TOKENS = 252  # with what SQLite adds, eight fill a page
MOST_TOKENS = 1 << 24  # of a completion; a larger number in the file is damage
BUSY_S = 120
CACHE_KIB = 16_384

_SCHEMA = """
CREATE TABLE reference (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    facts TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL
);
CREATE TABLE origin (id INTEGER PRIMARY KEY, facts TEXT NOT NULL UNIQUE);
CREATE TABLE completion (
    reference INTEGER NOT NULL,
    key BLOB NOT NULL,
    first INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    PRIMARY KEY (reference, key)
) WITHOUT ROWID;
CREATE TABLE piece (id INTEGER PRIMARY KEY, logps BLOB NOT NULL);
CREATE TABLE file (path TEXT PRIMARY KEY, stat TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE loaded (source TEXT PRIMARY KEY, fingerprint TEXT NOT NULL) WITHOUT ROWID;
"""
_LATER = """
CREATE TABLE IF NOT EXISTS known (
    reference INTEGER NOT NULL,
    dataset TEXT NOT NULL,
    completions INTEGER NOT NULL,
    PRIMARY KEY (reference, dataset)
) WITHOUT ROWID
"""

# The types are SQLite's to check: in a damaged file a column may hold anything.
_FIND = f"""
SELECT c.tokens, c.checksum, c.first, CAST(coalesce(p.logps, '') AS BLOB) FROM completion c
LEFT JOIN piece p ON p.id = c.first
WHERE c.reference = ? AND c.key = ?
AND c.tokens BETWEEN 0 AND {MOST_TOKENS} AND typeof(c.first) = 'integer'
"""
_PIECES = """
SELECT CAST(coalesce(logps, '') AS BLOB) FROM piece WHERE id BETWEEN ? AND ? ORDER BY id
"""


class DatabaseError(RuntimeError):
    """The file cannot be used as a database of reference log-probs."""


class OlderVersionError(DatabaseError):
    """The file was written by an earlier version of prefopt."""


class NewerVersionError(DatabaseError):
    """The file was written by a later version of prefopt."""


class ForeignFileError(DatabaseError):
    """The file is an SQLite database of another program."""


class Database:
    """Reference log-probs in a file.

    Each process, and each thread, has a connection of its own, also after a fork; the object can be
    pickled.

    Args:
        path: The file; made if it does not exist.
        readonly: Whether the file must be left as it is; it must then exist.

    Raises:
        OlderVersionError: If an earlier version of prefopt wrote the file.
        NewerVersionError: If a later version of prefopt wrote the file.
        ForeignFileError: If another program did.
        sqlite3.Error: If the file or its folder cannot be read or written, or is damaged.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        self.reopen()

    def reopen(self) -> None:
        """Open the file that is now at the path, or make one; what was open before is closed.

        Raises:
            DatabaseError: As for the class.
            sqlite3.Error: As for the class.
        """
        self.close()
        # Connections that a fork copied from its parent must not be closed: they stay referenced.
        self._connections = {
            (process, thread): connection
            for (process, thread), connection in self._connections.items()
            if process != os.getpid()
        }
        self._opened: tuple[int, int] | None = None
        try:
            self._check()
        except BaseException:
            self.close()
            raise
        self._opened = _inode(self.path)

    def in_place(self) -> bool:
        """Whether the file at the path is still the one that was opened."""
        return self._opened is not None and _inode(self.path) == self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "readonly": self.readonly, "_opened": self._opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _connections={})

    # Connections ----------------------------------------------------------------------------------

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this process and thread.

        One that was inherited by a fork is neither used nor closed: SQLite forbids both.
        """
        here = (os.getpid(), threading.get_ident())
        if here not in self._connections:
            self._connections[here] = self._connect()
        return self._connections[here]

    def _connect(self) -> sqlite3.Connection:
        if not self.readonly:
            # A file that was deleted meanwhile is not made again: an empty one would say that
            # nothing was ever computed.
            mode = "rwc" if self._opened is None else "rw"
        elif all(file.exists() for file in files_of(self.path)):
            mode = "ro"
        else:  # the shared memory that a reader needs could not be made
            mode = "ro&immutable=1"
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
        )
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def close(self) -> None:
        """Close this thread's connection and forget all others; the next call opens one again."""
        here = (os.getpid(), threading.get_ident())
        if here in self._connections:
            self._connections.pop(here).close()

    def _check(self) -> None:
        """Make the tables where the file is new; refuse a file that is not ours or is newer."""
        if not self.readonly and not self._tables():
            self._make()
        application, version = self.pragma("application_id"), self.pragma("user_version")
        if application != APPLICATION_ID:
            raise ForeignFileError(f"{self.path} is a database of another program")
        if version > VERSION:
            raise NewerVersionError(
                f"{self.path} was written by a later version of prefopt (schema {version}; this "
                f"one knows {VERSION})"
            )
        if version < VERSION:
            raise OlderVersionError(
                f"{self.path} was written by an earlier version of prefopt (schema {version}; "
                f"this one needs {VERSION})"
            )
        if not self.readonly:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute(_LATER)

    def _make(self) -> None:
        self.connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        self.connection.execute("PRAGMA journal_mode = WAL")
        with self.writing() as connection:
            if self._tables():  # another process was first
                return
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def pragma(self, name: str) -> int:
        """Return one of SQLite's numbers about the file, such as ``"page_size"``."""
        (value,) = self.connection.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    def _tables(self) -> int:
        (count,) = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return int(count)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is committed together, or not at all."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    # References -----------------------------------------------------------------------------------

    def reference(self, fingerprint: str, facts: Mapping[str, Any] | None = None) -> int | None:
        """Return the number of a reference in this file; None if it has none and cannot get one.

        Given its facts, the reference is added if it is not known, and counts as used now.
        """
        if facts is not None and not self.readonly:
            now = time.time()
            with self.writing() as connection:
                connection.execute(
                    "INSERT INTO reference (fingerprint, facts, created, used) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (fingerprint) DO UPDATE SET used = excluded.used",
                    (fingerprint, as_json(facts), now, now),
                )
        found = self.connection.execute(
            "SELECT id FROM reference WHERE fingerprint = ?", (fingerprint,)
        ).fetchone()
        return None if found is None else int(found[0])

    def origin(self, facts: Mapping[str, Any]) -> int:
        """Return the number of a way in which values are computed, adding it if need be."""
        text = as_json(facts)
        with self.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO origin (facts) VALUES (?)", (text,))
            found = connection.execute("SELECT id FROM origin WHERE facts = ?", (text,)).fetchone()
        return int(found[0])

    # Digests --------------------------------------------------------------------------------------
    # They only save time and must not stop a run: errors of reading count as not known, and errors
    # of writing are ignored.

    def file_digest(self, path: str, stat: str) -> str | None:
        """Return the digest of a file if it was digested when its ``stat`` was the same."""
        found = self._ask("SELECT digest FROM file WHERE path = ? AND stat = ?", path, stat)
        return None if found is None else str(found[0])

    def remember_file(self, path: str, stat: str, digest: str) -> None:
        """Keep the digest of a file, for as long as its ``stat`` stays."""
        self._note("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", path, stat, digest)

    def loaded(self, source: str) -> tuple[str, dict[str, Any]] | None:
        """Return fingerprint and facts of the model loaded from a source; None if not known."""
        found = self._ask(
            "SELECT r.fingerprint, r.facts FROM loaded l JOIN reference r "
            "ON r.fingerprint = l.fingerprint WHERE l.source = ?",
            source,
        )
        try:
            return None if found is None else (str(found[0]), json.loads(found[1]))
        except ValueError:  # damaged
            return None

    def remember_loaded(self, source: str, fingerprint: str, facts: Mapping[str, Any]) -> None:
        """Keep which fingerprint the model loaded from a source had, and its facts."""
        try:
            self.reference(fingerprint, facts)
        except sqlite3.DatabaseError:
            return
        self._note("INSERT OR REPLACE INTO loaded VALUES (?, ?)", source, fingerprint)

    def knows_all_of(self, reference: int, dataset: str) -> bool:
        """Whether all of a dataset was known once, and nothing was deleted since."""
        found = self._ask(
            "SELECT completions <= (SELECT count(*) FROM completion WHERE reference = ?1) "
            "FROM known WHERE reference = ?1 AND dataset = ?2",
            reference,
            dataset,
        )
        return found is not None and bool(found[0])

    def remember_all_of(self, reference: int, dataset: str) -> None:
        """Keep that all of a dataset is known now."""
        self._note(
            "INSERT OR REPLACE INTO known SELECT ?1, ?2, count(*) FROM completion "
            "WHERE reference = ?1",
            reference,
            dataset,
        )

    def _ask(self, statement: str, *values: str | int) -> tuple[Any, ...] | None:
        try:
            found: tuple[Any, ...] | None = self.connection.execute(statement, values).fetchone()
        except sqlite3.DatabaseError:
            return None
        return found

    def _note(self, statement: str, *values: str | int) -> None:
        if self.readonly:
            return
        with suppress(sqlite3.DatabaseError), self.writing() as connection:
            connection.execute(statement, values)

    # Values ---------------------------------------------------------------------------------------

    def get(self, reference: int, fingerprint: str, key: bytes) -> Floats | None:
        """Return the log-probs of a completion; (n,), nats; None if not known, or damaged."""
        connection = self.connection
        found = connection.execute(_FIND, (reference, key)).fetchone()
        if found is None:
            return None
        tokens, checksum, first, logps = found
        if tokens > PIECE_TOKENS:
            rows = connection.execute(_PIECES, (first, first + _pieces(tokens) - 1))
            logps = b"".join(row[0] for row in rows)
        if len(logps) != 4 * tokens or _crc(fingerprint, key, logps) != checksum:
            return None
        return np.frombuffer(logps, dtype="<f4")

    def put(
        self, reference: int, fingerprint: str, origin: int, values: Iterable[tuple[bytes, Floats]]
    ) -> int:
        """Add log-probs of completions in one commit; return how many were not known before.

        What is known already stays as it is, unless it is damaged.

        Raises:
            sqlite3.Error: If the file cannot be written, or is damaged; then nothing was added.
        """
        added = 0
        with self.writing() as connection:
            (last,) = connection.execute("SELECT max(id) FROM piece").fetchone()
            first = (last or 0) + 1
            for key, logps in values:
                if self.get(reference, fingerprint, key) is not None:
                    continue
                blob = np.ascontiguousarray(logps, dtype="<f4").tobytes()
                connection.executemany(
                    "INSERT INTO piece (id, logps) VALUES (?, ?)",
                    [
                        (first + i, blob[4 * PIECE_TOKENS * i : 4 * PIECE_TOKENS * (i + 1)])
                        for i in range(_pieces(len(logps)))
                    ],
                )
                connection.execute(
                    "INSERT OR REPLACE INTO completion VALUES (?, ?, ?, ?, ?, ?)",
                    (reference, key, first, len(logps), _crc(fingerprint, key, blob), origin),
                )
                first += _pieces(len(logps))
                added += 1
                if self.get(reference, fingerprint, key) is None:  # on a page damaged unnoticed
                    raise sqlite3.DatabaseError("malformed: what was written cannot be read")
        return added

    def delete_pieces(self, completions: Iterable[tuple[int, int]]) -> None:
        """Delete the log-probs of completions, given as first piece and number of tokens."""
        self.connection.executemany(
            "DELETE FROM piece WHERE id BETWEEN ? AND ?",
            [(first, first + _pieces(tokens) - 1) for first, tokens in completions],
        )

    def checkpoint(self) -> None:
        """Move what was committed from the log into the file, if no reader is in the way."""
        if not self.readonly:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def files_of(path: Path) -> list[Path]:
    """Return the files that make up a database: itself, its log, its shared memory."""
    return [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))]


def _inode(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another that takes its place; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _pieces(tokens: int) -> int:
    """Return how many pieces a completion has: one at least."""
    return max(1, -(-tokens // PIECE_TOKENS))


def checksum_of(fingerprint: str, key: bytes, logps: Floats) -> int:
    """Return what binds log-probs to their key: a CRC-32 as a signed number of four bytes."""
    return _crc(fingerprint, key, np.ascontiguousarray(logps, dtype="<f4").tobytes())


def _crc(fingerprint: str, key: bytes, logps: bytes) -> int:
    """Return the checksum as a signed number: SQLite stores it in four bytes."""
    unsigned = crc32(logps, crc32(key, crc32(fingerprint.encode())))
    return unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned
