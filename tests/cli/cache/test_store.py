"""Where the store lies, and errors as one message."""

import sqlite3
from pathlib import Path

import pytest

from prefopt.cli.cache.store import folder_of, store_errors
from prefopt.cli.errors import UserError
from prefopt.reference import default_folder
from prefopt.reference.store.database import NewerVersionError


def test_the_folder_is_the_one_that_was_named_or_the_trainers_default():
    assert folder_of("here") == Path("here")
    assert folder_of(None) == default_folder()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NewerVersionError("a later version"), "a later version"),
        (sqlite3.DatabaseError("file is not a database"), "reference.sqlite is damaged"),
        (sqlite3.OperationalError("database is locked"), "another process is writing to"),
        (FileNotFoundError("no file"), "no file"),
    ],
)
def test_what_can_be_wrong_with_a_store_is_an_error_of_the_user(tmp_path, error, message):
    with pytest.raises(UserError, match=message), store_errors(tmp_path):
        raise error


def test_a_fault_of_the_program_stays_one(tmp_path):
    with pytest.raises(KeyError), store_errors(tmp_path):
        raise KeyError("name")
