"""What happens to a damaged file of reference log-probs: it is set aside, and a new one is started.

No value is wrong because of damage: each has a checksum. What the damaged file held is computed
again when it is needed.
"""

import logging
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from prefopt.reference.store.database import Database, files_of

logger = logging.getLogger("prefopt")

# What SQLite says of a file that is not what it was (SQLITE_CORRUPT, SQLITE_NOTADB), and Python of
# text in one.
_SIGNS = ("malformed", "not a database", "disk image", "Could not decode")


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is not what it was.

    Numbers that exist already, or are too large, are ones that this program never writes.
    """
    if isinstance(error, sqlite3.IntegrityError | OverflowError):
        return True
    return isinstance(error, sqlite3.DatabaseError) and any(sign in str(error) for sign in _SIGNS)


def set_aside(path: Path, reason: str) -> Path:
    """Rename a file that cannot be used, its log with it, so that a new one can take its place.

    Raises:
        OSError: If the folder cannot be written.
    """
    moved = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    # The log first: one that lies beside a new file might be taken for its own.
    for file in reversed(files_of(path)):
        with suppress(FileNotFoundError):
            file.rename(moved.with_name(moved.name + file.name[len(path.name) :]))
    logger.warning(
        "%s cannot be used any more (%s): it was set aside as %s, and a new file was started. "
        "What it held is computed again when it is needed.",
        path,
        reason,
        moved,
    )
    return moved


def replace_damaged(database: Database, reason: str) -> None:
    """Set a damaged file aside and start a new one, unless another process has done so already.

    Raises:
        OSError: If the folder cannot be written.
        sqlite3.Error: If the new file cannot be.
    """
    if database.in_place():
        database.close()
        set_aside(database.path, reason)
    database.reopen()
