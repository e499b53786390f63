"""Looking after a store: what is counted, what is chosen to go, and what its going leaves."""

import json
import sqlite3

import numpy as np
import pytest

from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME
from prefopt.reference.store.maintain import (
    ReferenceInfo,
    choose_to_prune,
    delete_reference,
    describe_store,
    entries_of,
    explain,
    find_reference,
    open_store,
    references_of,
    shrink,
)

DAY = 86_400


def info_of(number, used=0.0, size_bytes=0, fingerprint=None):
    return ReferenceInfo(
        number, fingerprint or f"{number:032x}", {}, 0.0, used, 1, 1, size_bytes, ()
    )


def key_of(number):
    return number.to_bytes(16, "big")


@pytest.fixture
def database(tmp_path):
    """Two references: 5000 completions of 3 tokens, and one of 1000 tokens with the same key."""
    database = Database(tmp_path / FILE_NAME)
    short = database.reference("aa" * 16, {"model": "short"})
    long = database.reference("bb" * 16, {"model": "long"})
    here, there = database.origin({"device": "cpu"}), database.origin({"device": "cuda"})
    values = [(key_of(i), np.full(3, -i, dtype=np.float32)) for i in range(5000)]
    database.put(short, "aa" * 16, here, values[:4990])
    database.put(short, "aa" * 16, there, values[4990:])
    database.put(long, "bb" * 16, here, [(key_of(7), np.arange(1000, dtype=np.float32))])
    database.remember_loaded("source", "aa" * 16, {"model": "short"})
    return database


def test_completions_tokens_and_origins_are_counted_by_reference(database):
    short, long = sorted(references_of(database), key=lambda info: info.fingerprint)
    assert (short.completions, short.tokens) == (5000, 15_000)
    assert (long.completions, long.tokens) == (1, 1000)
    assert short.origins == (
        {"device": "cpu", "completions": 4990},
        {"device": "cuda", "completions": 10},
    )
    assert long.facts == {"model": "long"}


def test_the_shares_of_the_references_are_the_file(database):
    database.checkpoint()
    size = database.path.stat().st_size
    shares = [info.size_bytes for info in references_of(database)]
    assert sum(shares) == pytest.approx(size, abs=2)
    assert max(shares) > 0.95 * size


def test_entries_come_in_the_order_of_keys_each_once(database):
    parts = list(entries_of(database, 1))
    assert max(map(len, parts)) < 5000
    keys = [entry.key for part in parts for entry in part]
    assert keys == [key_of(i) for i in range(5000)]


def test_an_empty_store_is_described(tmp_path):
    described = describe_store(Database(tmp_path / FILE_NAME))
    assert described.references == ()
    assert described.version == 1


def test_files_that_were_set_aside_are_named(database):
    aside = database.path.with_name(f"{FILE_NAME}.damaged-20260101-000000-1")
    aside.write_bytes(b"")
    assert describe_store(database).set_aside == (aside,)


def test_nothing_is_made_where_there_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store of reference log-probs"):
        open_store(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


# Choosing -----------------------------------------------------------------------------------------

THREE = [info_of(1, 10 * DAY, 100), info_of(2, 30 * DAY, 200), info_of(3, 20 * DAY, 400)]


@pytest.mark.parametrize(
    ("conditions", "numbers"),
    [
        ({}, []),
        ({"unused_days": 11}, [1, 3]),  # for 21, 1 and a little over 11 days
        ({"unused_days": 12}, [1]),
        ({"max_bytes": 700}, []),
        ({"max_bytes": 699}, [1]),
        ({"max_bytes": 600}, [1]),
        ({"max_bytes": 599}, [1, 3]),
        ({"max_bytes": 0}, [1, 3, 2]),
        ({"prefixes": [f"{2:032x}"]}, [2]),
        ({"prefixes": [f"{2:032x}"], "max_bytes": 500}, [2]),  # what goes anyway counts
        ({"prefixes": [f"{2:032x}"], "max_bytes": 499}, [1, 2]),
    ],
)
def test_what_goes_is_what_a_condition_names_the_longest_unused_first(conditions, numbers):
    going = choose_to_prune(THREE, now=31 * DAY + 1, **conditions)
    assert [info.number for info in going] == numbers


def test_a_prefix_must_be_that_of_one_fingerprint():
    references = [info_of(1, fingerprint="abc1"), info_of(2, fingerprint="abd2")]
    assert find_reference(references, "ABC").number == 1
    with pytest.raises(ValueError, match="'ab' is the beginning of 2 fingerprints: abc1, abd2"):
        find_reference(references, "ab")
    for prefix in ("", "x"):
        with pytest.raises(ValueError, match=r"no fingerprint .* there are: abc1, abd2"):
            find_reference(references, prefix)


# Deleting -----------------------------------------------------------------------------------------


def rows_in(database, table):
    (count,) = database.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return count


def test_a_deleted_reference_leaves_nothing_and_the_others_as_they_were(database):
    database.checkpoint()
    before = database.path.stat().st_size
    short = find_reference(references_of(database), "aa")
    delete_reference(database, short)
    assert rows_in(database, "completion") == 1
    assert rows_in(database, "piece") == 4  # 1000 tokens
    assert rows_in(database, "loaded") == 0
    assert [info.fingerprint for info in references_of(database)] == ["bb" * 16]
    kept = database.get(2, "bb" * 16, key_of(7))
    np.testing.assert_array_equal(kept, np.arange(1000, dtype=np.float32))

    database.checkpoint()
    assert database.path.stat().st_size == before
    assert describe_store(database).free_bytes > before / 2
    after = shrink(database)
    assert after == database.path.stat().st_size < before / 2
    assert describe_store(database).free_bytes == 0
    kept = database.get(2, "bb" * 16, key_of(7))
    np.testing.assert_array_equal(kept, np.arange(1000, dtype=np.float32))


def test_a_run_that_still_writes_under_a_deleted_number_is_never_misread(database):
    long = find_reference(references_of(database), "bb")
    delete_reference(database, long)
    database.put(long.number, "bb" * 16, 1, [(key_of(1), np.zeros(2, dtype=np.float32))])
    number = database.reference("cc" * 16, {})
    assert number == long.number  # SQLite gives the number away again
    assert database.get(number, "cc" * 16, key_of(1)) is None


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (sqlite3.DatabaseError("database disk image is malformed"), "is damaged"),
        (sqlite3.OperationalError("database or disk is full"), "the disk of .* is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "for writing"),
        (sqlite3.OperationalError("database is locked"), "another process is writing"),
        (sqlite3.OperationalError("something else"), "something else"),
    ],
)
def test_errors_of_sqlite_are_put_in_words(error, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        raise ValueError(explain(error, tmp_path / FILE_NAME))


def test_facts_are_read_as_they_were_written(tmp_path):
    database = Database(tmp_path / FILE_NAME)
    facts = {"quantization": {"bits": 4}, "adapters": [{"r": 8}]}
    database.reference("dd" * 16, facts)
    (info,) = references_of(database)
    assert info.facts == facts == json.loads(json.dumps(facts))
