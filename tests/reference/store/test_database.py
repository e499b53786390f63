"""The file: what goes in comes out, to the bit, or not at all."""

import multiprocessing
import pickle
import sqlite3
import threading

import numpy as np
import pytest

from prefopt.reference.store import database as module
from prefopt.reference.store.database import (
    PAGE_BYTES,
    PIECE_TOKENS,
    Database,
    ForeignFileError,
    NewerVersionError,
    OlderVersionError,
)

NAME = "f" * 32


def logps(tokens, seed=0):
    return -np.random.default_rng([tokens, seed]).exponential(2.0, tokens).astype(np.float32)


def key(number):
    return number.to_bytes(16, "little")


class Opened:
    """A database with one reference and one origin."""

    def __init__(self, path):
        self.database = Database(path)
        self.reference = self.database.reference(NAME, {"model": "m"})
        self.origin = self.database.origin({"device": "cpu"})

    def put(self, values):
        return self.database.put(self.reference, NAME, self.origin, values)

    def get(self, wanted):
        return self.database.get(self.reference, NAME, wanted)


@pytest.fixture
def opened(tmp_path):
    store = Opened(tmp_path / "x.sqlite")
    yield store
    store.database.close()


LENGTHS = [0, 1, PIECE_TOKENS - 1, PIECE_TOKENS, PIECE_TOKENS + 1, 2 * PIECE_TOKENS, 256, 257, 1000]


def test_what_was_put_is_got_to_the_bit(opened):
    values = {key(tokens): logps(tokens) for tokens in LENGTHS}
    assert opened.put(values.items()) == len(values)
    opened.database.close()
    for name, value in values.items():
        got = opened.get(name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, value)
    assert opened.get(key(77)) is None


def test_values_that_are_no_numbers_are_kept_too(opened):
    value = np.array([-np.inf, np.nan, -0.0], dtype=np.float32)
    opened.put([(key(1), value)])
    assert opened.get(key(1)).tobytes() == value.tobytes()


def test_what_is_known_stays_as_it_is(opened):
    opened.put([(key(1), logps(5))])
    assert opened.put([(key(1), logps(5, seed=1)), (key(2), logps(3))]) == 1
    np.testing.assert_array_equal(opened.get(key(1)), logps(5))


def test_references_do_not_share_values(opened):
    opened.put([(key(1), logps(5))])
    database = opened.database
    other = database.reference("e" * 32, {})
    assert other != opened.reference
    assert database.get(other, "e" * 32, key(1)) is None
    assert database.reference("d" * 32) is None
    assert database.reference(NAME) == opened.reference


def test_a_value_under_the_number_of_another_reference_is_not_known(opened):
    """Numbers belong to a file; one that takes its place may give them to others."""
    opened.put([(key(1), logps(5))])
    assert opened.database.get(opened.reference, "e" * 32, key(1)) is None


def test_a_commit_that_fails_leaves_nothing(opened):
    def values():
        yield key(1), logps(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened.put(values())
    assert opened.get(key(1)) is None
    assert opened.put([(key(1), logps(5))]) == 1


# Connections --------------------------------------------------------------------------------------


def test_a_pickled_database_opens_the_same_file(opened):
    opened.put([(key(1), logps(5))])
    again = pickle.loads(pickle.dumps(opened.database))
    np.testing.assert_array_equal(again.get(opened.reference, NAME, key(1)), logps(5))
    again.close()


def test_a_file_that_was_lost_is_not_made_again_empty(opened):
    """An empty one would say that nothing is known, and be written to by some and not by others."""
    opened.database.close()
    opened.database.path.unlink()
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        opened.get(key(1))
    assert not opened.database.path.exists()


def test_threads_have_connections_of_their_own(opened):
    found = []

    def work():
        opened.put([(key(2), logps(300))])
        found.append((opened.database.connection, opened.get(key(1))))
        opened.database.close()

    opened.put([(key(1), logps(5))])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ((connection, value),) = found
    assert connection is not opened.database.connection
    np.testing.assert_array_equal(value, logps(5))
    np.testing.assert_array_equal(opened.get(key(2)), logps(300))


def _in_a_fork(opened, inherited, results):
    connection = opened.database.connection
    results.put(connection is not inherited)
    results.put(opened.get(key(1)).tolist())
    opened.put([(key(2), logps(3))])
    opened.database.reopen()
    results.put(inherited in opened.database._connections.values())


def test_forks_have_connections_of_their_own(opened):
    context = multiprocessing.get_context("fork")
    opened.put([(key(1), logps(5))])
    results = context.Queue()
    process = context.Process(target=_in_a_fork, args=(opened, opened.database.connection, results))
    process.start()
    answers = [results.get(timeout=60) for _ in range(3)]
    process.join()
    assert process.exitcode == 0
    assert answers == [True, logps(5).tolist(), True]  # kept: SQLite forbids to close it there
    np.testing.assert_array_equal(opened.get(key(2)), logps(3))


# Other files --------------------------------------------------------------------------------------


def test_an_empty_file_becomes_a_database(tmp_path):
    (tmp_path / "x.sqlite").touch()
    opened = Opened(tmp_path / "x.sqlite")
    opened.put([(key(1), logps(5))])
    np.testing.assert_array_equal(opened.get(key(1)), logps(5))
    opened.database.close()


def test_a_log_without_its_file_is_not_taken_over(tmp_path):
    opened = Opened(tmp_path / "x.sqlite")
    opened.put([(key(1), logps(5))])
    log = (tmp_path / "x.sqlite-wal").read_bytes()
    opened.database.close()
    (tmp_path / "x.sqlite").unlink()
    (tmp_path / "x.sqlite-wal").write_bytes(log)
    fresh = Opened(tmp_path / "x.sqlite")
    assert fresh.get(key(1)) is None
    fresh.put([(key(1), logps(6))])
    np.testing.assert_array_equal(fresh.get(key(1)), logps(6))
    fresh.database.close()


def test_a_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "x.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ForeignFileError, match="another program"):
        Database(path)
    assert path.read_bytes() == before


def with_version(path, version):
    Opened(path).database.close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def test_a_newer_version_is_refused(tmp_path):
    with_version(tmp_path / "x.sqlite", module.VERSION + 1)
    before = (tmp_path / "x.sqlite").read_bytes()
    with pytest.raises(NewerVersionError, match=r"later version of prefopt \(schema 2; this one"):
        Database(tmp_path / "x.sqlite")
    assert (tmp_path / "x.sqlite").read_bytes() == before


@pytest.mark.parametrize("readonly", [False, True])
def test_an_older_version_is_refused_and_stays_as_it_was(tmp_path, monkeypatch, readonly):
    Opened(tmp_path / "x.sqlite").database.close()
    monkeypatch.setattr(module, "VERSION", 3)
    with pytest.raises(OlderVersionError, match=r"earlier version of prefopt \(schema 1; this one"):
        Database(tmp_path / "x.sqlite", readonly=readonly)
    monkeypatch.undo()
    Opened(tmp_path / "x.sqlite").database.close()


# What saves time ----------------------------------------------------------------------------------


def test_what_only_saves_time_never_stops_a_run(opened):
    database = opened.database
    database.remember_loaded("source", NAME, {"model": "m"})
    assert database.loaded("source") == (NAME, {"model": "m"})
    database.remember_file("a", "1 2", "digest")
    assert database.file_digest("a", "1 2") == "digest"
    assert database.file_digest("a", "1 3") is None
    database.connection.execute("UPDATE reference SET facts = '{'")
    assert database.loaded("source") is None
    database.connection.execute("DROP TABLE file")
    database.remember_file("a", "1 2", "digest")
    assert database.file_digest("a", "1 2") is None
    database.connection.execute("PRAGMA query_only = 1")
    database.remember_loaded("other", NAME, {})
    assert database.loaded("other") is None


# Storage ------------------------------------------------------------------------------------------


def hh_like(count):
    """Return lengths as those of HH's helpful completions: median 38, mean 53, 1% above 256."""
    lengths = np.random.default_rng(0).lognormal(np.log(38), 0.85, count)
    return np.clip(lengths, 1, 800).astype(int).tolist()


@pytest.mark.parametrize(
    "lengths",
    [[1] * 20_000, hh_like(10_000), [PIECE_TOKENS + 1] * 2000, [2000] * 500],
    ids=["one token", "like HH", "a little more than a piece", "2000 tokens"],
)
def test_storage_is_at_most_6_bytes_a_token_and_80_a_completion(opened, lengths):
    random = np.random.default_rng(1)
    for start in range(0, len(lengths), 64):
        opened.put([(random.bytes(16), logps(tokens)) for tokens in lengths[start : start + 64]])
    opened.database.checkpoint()
    opened.database.close()
    size = opened.database.path.stat().st_size
    assert size <= 6 * sum(lengths) + 80 * len(lengths)


def test_eight_pieces_fill_a_page(opened):
    opened.put([(key(number), logps(PIECE_TOKENS)) for number in range(800)])
    opened.database.checkpoint()
    pages = opened.database.path.stat().st_size / PAGE_BYTES
    assert pages < 100 + 20  # of the pieces, and of all else
