"""Where the store of a command lies, and what its errors mean."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefopt.cli.errors import UserError, user_errors
from prefopt.reference.store.database import DatabaseError
from prefopt.reference.store.logp_store import FILE_NAME, default_folder
from prefopt.reference.store.maintain import explain


@contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Turn what can be wrong with a store or with input into ``UserError``."""
    try:
        with user_errors():
            yield
    except (DatabaseError, sqlite3.Error) as error:
        raise UserError(explain(error, folder / FILE_NAME)) from error


def folder_of(cache_dir: str | Path | None) -> Path:
    """Return where the store lies, as the trainer would find it; None is the default."""
    return default_folder() if cache_dir is None else Path(cache_dir)
