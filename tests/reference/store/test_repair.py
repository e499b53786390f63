"""A damaged file is told from one that is busy, full or not ours, and makes way for a new one."""

import sqlite3

import numpy as np
import pytest

from prefopt.reference.store.database import Database
from prefopt.reference.store.repair import is_damage, replace_damaged, set_aside

NAME, KEY, LOGPS = "f" * 32, b"k" * 16, np.array([-1, -2], dtype=np.float32)


def one_value(path):
    """Return a database with one value."""
    database = Database(path)
    number = database.reference(NAME, {})
    database.put(number, NAME, database.origin({}), [(KEY, LOGPS)])
    return database


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (sqlite3.DatabaseError("database disk image is malformed"), True),
        (sqlite3.DatabaseError("file is not a database"), True),
        (sqlite3.OperationalError("Could not decode to UTF-8 column 'facts'"), True),
        (sqlite3.IntegrityError("UNIQUE constraint failed: piece.id"), True),
        (OverflowError("Python int too large to convert to SQLite INTEGER"), True),
        (sqlite3.OperationalError("database or disk is full"), False),
        (sqlite3.OperationalError("database is locked"), False),
        (OSError("file is not a database"), False),
    ],
)
def test_damage_is_told_from_what_else_can_go_wrong(error, damage):
    assert is_damage(error) is damage


def test_a_file_is_set_aside_with_its_log_and_a_warning_says_where(tmp_path, caplog):
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"file")
    (tmp_path / "store.sqlite-wal").write_bytes(b"log")
    moved = set_aside(path, "the reason")
    assert sorted(tmp_path.iterdir()) == [moved, moved.with_name(moved.name + "-wal")]
    assert (moved.read_bytes(), moved.with_name(moved.name + "-wal").read_bytes()) == (
        b"file",
        b"log",
    )
    (told,) = caplog.messages
    for sign in (str(path), "(the reason)", f"set aside as {moved}", "computed again"):
        assert sign in told


def test_a_damaged_file_makes_way_for_a_new_one(tmp_path):
    database = one_value(tmp_path / "store.sqlite")
    replace_damaged(database, "it is damaged")
    assert database.in_place()
    assert database.reference(NAME) is None  # the new file is empty
    database.close()
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_a_file_that_another_process_has_replaced_is_opened_and_stays(tmp_path, caplog):
    path = tmp_path / "store.sqlite"
    database = one_value(path)
    database.close()
    path.rename(tmp_path / "elsewhere")
    other = one_value(path)
    replace_damaged(database, "it is damaged")
    assert database.in_place()
    np.testing.assert_array_equal(database.get(1, NAME, KEY), LOGPS)
    assert not caplog.messages
    database.close()
    other.close()
