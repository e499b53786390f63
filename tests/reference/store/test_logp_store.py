"""The store goes on whatever becomes of its file: a clear warning, and never a wrong value."""

import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest

from prefopt.data.prepared import completion_key
from prefopt.reference import default_folder
from prefopt.reference.store import database as schema
from prefopt.reference.store.database import PAGE_BYTES, Database
from prefopt.reference.store.logp_store import FILE_NAME, FileStore, MemoryStore, open_database

NAME, FACTS, ORIGIN = "f" * 32, {"model": "m"}, {"device": "cpu"}


def opened(folder):
    database = open_database(folder)
    assert database is not None
    return FileStore(database, NAME, FACTS, ORIGIN)


def values_of(count, most_tokens=600):
    """Return random values by random key."""
    random = np.random.default_rng(0)
    return {
        random.bytes(16): random.normal(size=random.integers(1, most_tokens)).astype(np.float32)
        for _ in range(count)
    }


def add_all(store, values, commit=50):
    entries = list(values.items())
    for start in range(0, len(entries), commit):
        store.add(entries[start : start + commit])


def fill(store, values):
    """Add values, and once more where the file was replaced meanwhile, as a run does."""
    add_all(store, values)
    if store.replaced:
        add_all(store, values)


def known(store, values):
    """Return how many of the values the store knows; none may be wrong."""
    found = store.look_up(list(values))
    for got, value in zip(found, values.values(), strict=True):
        assert got is None or got.tobytes() == value.tobytes()
    return sum(got is not None for got in found)


@pytest.fixture
def filled(tmp_path):
    """A folder with a store of 400 completions that no process has open, and its values."""
    store, values = opened(tmp_path), values_of(400)
    add_all(store, values)
    store.finish()
    store.database.close()
    assert sorted(os.listdir(tmp_path)) == [FILE_NAME]
    return tmp_path, values


def goes_on(folder, values, caplog):
    """Open a damaged store, look all up, add all; return how many were found before."""
    caplog.clear()
    store = opened(folder)
    survived = known(store, values)
    fill(store, values)
    assert known(store, values) == len(values)
    assert store.in_memory == 0
    store.finish()
    store.database.close()
    again = opened(folder)
    assert known(again, values) == len(values)
    assert not again.replaced
    again.database.close()
    return survived


def damaged_files(folder):
    """Return the files that were set aside, without their logs."""
    return [file for file in folder.iterdir() if "damaged" in file.name and file.name[-1].isdigit()]


# Whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [opened, lambda folder: MemoryStore()])
def test_texts_are_found_by_their_tokens(tmp_path, make):
    store = make(tmp_path)
    prompt, completion = np.array([1, 2]), np.array([3, 4, 5])
    keys = [completion_key(prompt, completion), completion_key(prompt, completion[:2])]
    assert store.look_up(keys) == [None, None]
    value = np.array([-1, -2, -3], dtype=np.float32)
    store.add([(keys[0], value)])
    found, other = store.look_up(keys)
    np.testing.assert_array_equal(found, value)
    assert other is None
    if isinstance(store, FileStore):
        store.database.close()


def test_another_process_finds_what_one_has_added(filled):
    folder, values = filled
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    store = opened(folder)
    pickled = pickle.dumps(store)
    for work in (lambda: store, lambda: pickle.loads(pickled)):  # a forked and a spawned worker
        process = context.Process(target=lambda work=work: answers.put(known(work(), values)))
        process.start()
        assert answers.get(timeout=60) == len(values)
        process.join()
    store.database.close()


def test_the_default_folder(monkeypatch):
    assert str(default_folder()) == os.environ["PREFOPT_CACHE"]
    monkeypatch.delenv("PREFOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/prefopt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/prefopt"


# Damaged ------------------------------------------------------------------------------------------


def test_a_flipped_bit_makes_a_value_unknown_and_not_wrong(filled, caplog):
    folder, values = filled
    path = folder / FILE_NAME
    content = bytearray(path.read_bytes())
    longest = max(values.values(), key=len).tobytes()
    place = content.index(longest[:400]) + 100
    content[place] ^= 4
    path.write_bytes(content)
    assert goes_on(folder, values, caplog) == len(values) - 1
    assert not caplog.messages  # nothing to tell: it is computed again


def index_pages(path):
    """Return the numbers of the pages of the index of completions, from 0, the root first."""
    connection = sqlite3.connect(path)
    (root,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'completion'"
    ).fetchone()
    connection.close()
    content = path.read_bytes()
    kinds = content[::PAGE_BYTES]
    leaves = [page for page in range(1, len(kinds)) if kinds[page] == 10]  # of indices
    return [root - 1, *leaves]


def overwrite(path, page, content):
    with path.open("r+b") as file:
        file.seek(page * PAGE_BYTES)
        file.write(content)


def fullest(path, pages):
    """Return which of some pages has the most cells."""
    content = path.read_bytes()

    def cells(page):
        return int.from_bytes(content[page * PAGE_BYTES + 3 : page * PAGE_BYTES + 5], "big")

    return max(pages, key=cells)


def was_set_aside(folder, content, caplog):
    """Whether the file with some content was set aside, and a warning says where it is."""
    (moved,) = damaged_files(folder)
    return content in moved.read_bytes() and f"it was set aside as {moved}" in caplog.text


def test_a_damaged_index_page_is_read_around_until_something_must_be_written(filled, caplog):
    folder, values = filled
    path = folder / FILE_NAME
    overwrite(path, fullest(path, index_pages(path)[1:]), b"\x55" * PAGE_BYTES)
    survived = goes_on(folder, values, caplog)
    assert 0.3 * len(values) < survived < len(values)  # the index has few pages
    assert "cannot be read everywhere" in caplog.text
    assert was_set_aside(folder, b"\x55" * PAGE_BYTES, caplog)


def test_a_store_says_that_its_file_was_replaced_and_what_is_missing_then(filled):
    folder, values = filled
    path = folder / FILE_NAME
    overwrite(path, fullest(path, index_pages(path)[1:]), b"\x55" * PAGE_BYTES)
    store = opened(folder)
    found = store.look_up(list(values))
    lost = {key: values[key] for key, value in zip(values, found, strict=True) if value is None}
    assert not store.replaced
    store.add(list(lost.items()))
    assert store.replaced
    assert known(store, values) == known(store, lost) == len(lost)
    store.database.close()


def test_a_file_whose_references_cannot_be_read_is_set_aside_at_once(filled, caplog):
    folder, values = filled
    path = folder / FILE_NAME
    connection = sqlite3.connect(path)
    (root,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'reference'"
    ).fetchone()
    connection.close()
    overwrite(path, root - 1, b"\x55" * PAGE_BYTES)
    assert goes_on(folder, values, caplog) == 0
    assert was_set_aside(folder, b"\x55" * PAGE_BYTES, caplog)


@pytest.mark.parametrize(
    "content",
    [b"garbage" * 999, b"SQLite format 3\0" + b"\xff" * 9999],
    ids=["garbage", "a header and garbage"],
)
def test_what_is_no_database_is_set_aside(tmp_path, caplog, content):
    path, values = tmp_path / FILE_NAME, values_of(3)
    for file in (path, tmp_path / (FILE_NAME + "-wal")):
        file.write_bytes(content)
    assert goes_on(tmp_path, values, caplog) == 0
    assert len(caplog.messages) == 1
    assert "cannot be used any more" in caplog.text
    assert was_set_aside(tmp_path, content, caplog)


def test_an_empty_file_is_a_new_store(tmp_path, caplog):
    (tmp_path / FILE_NAME).touch()
    assert goes_on(tmp_path, values_of(3), caplog) == 0
    assert not caplog.messages


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.99])
def test_a_truncated_file_gives_right_values_or_none(filled, caplog, share):
    folder, values = filled
    path = folder / FILE_NAME
    os.truncate(path, int(share * path.stat().st_size))
    goes_on(folder, values, caplog)
    assert "set aside" in caplog.text


def damaged_at_random(path, random):
    """Damage a file in one of the ways in which disks do."""
    size = path.stat().st_size
    pages = size // PAGE_BYTES
    how = random.integers(4)
    if how == 0:
        content = bytearray(path.read_bytes())
        for place in random.integers(100, size, 1 + random.integers(3)):
            content[place] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
    elif how == 1:
        overwrite(path, int(random.integers(1, pages)), random.bytes(PAGE_BYTES))
    elif how == 2:
        overwrite(path, int(random.integers(1, pages)), bytes(PAGE_BYTES))
    else:  # a sector of another place
        overwrite(path, int(random.integers(1, pages)), path.read_bytes()[: 512 * (1 + how)])


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_gives_a_wrong_value_and_never_stops(filled, tmp_path, caplog, seed):
    folder, values = filled
    damaged_at_random(folder / FILE_NAME, np.random.default_rng(seed))
    goes_on(folder, values, caplog)


@pytest.mark.slow
def test_no_damaged_page_of_a_large_store_stops_a_run(tmp_path, caplog):
    store, values = opened(tmp_path / "whole"), values_of(6000, most_tokens=100)
    add_all(store, values)
    store.finish()
    store.database.close()
    random = np.random.default_rng(0)
    pages = (tmp_path / "whole" / FILE_NAME).stat().st_size // PAGE_BYTES
    shares = []
    for place in random.permutation(np.arange(1, pages))[:40]:
        folder = tmp_path / str(place)
        shutil.copytree(tmp_path / "whole", folder)
        overwrite(folder / FILE_NAME, int(place), random.bytes(PAGE_BYTES))
        shares.append(goes_on(folder, values, caplog) / len(values))
        shutil.rmtree(folder)
    assert np.median(shares) > 0.99  # what cannot be read is little, and alone is missing


def test_two_that_meet_a_damaged_file_set_it_aside_once(filled, caplog):
    folder, values = filled
    path = folder / FILE_NAME
    overwrite(path, fullest(path, index_pages(path)[1:]), b"\x55" * PAGE_BYTES)
    first, second = opened(folder), opened(folder)
    fill(first, values)
    fill(second, values)
    assert second.in_memory == 0
    assert known(first, values) == known(second, values) == len(values)
    assert caplog.text.count("it was set aside") == 1
    assert second.database.in_place()
    first.database.close()
    second.database.close()


def test_a_file_that_is_damaged_again_and_again_is_given_up(filled, caplog):
    folder, values = filled
    path = folder / FILE_NAME
    store = opened(folder)
    for _ in range(3):
        store.database.close()
        overwrite(path, fullest(path, index_pages(path)[1:]), b"\x55" * PAGE_BYTES)
        add_all(store, values)
        assert known(store, values) == len(values)
        store.finish()
    assert len(damaged_files(folder)) == 1
    assert "further reference log-probs are kept in memory" in caplog.text
    store.database.close()


# Not ours to write --------------------------------------------------------------------------------


def in_memory_only(folder, caplog, *signs):
    assert open_database(folder) is None
    (told,) = caplog.messages
    for sign in (
        "kept in memory, for this run only",
        str(folder),
        "reference_cache_dir or PREFOPT_CACHE",
        *signs,
    ):
        assert sign in told


def test_a_newer_store_is_left_alone(filled, caplog):
    folder, _ = filled
    connection = sqlite3.connect(folder / FILE_NAME)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = (folder / FILE_NAME).read_bytes()
    in_memory_only(folder, caplog, "later version of prefopt (schema 2; this one knows 1)")
    assert (folder / FILE_NAME).read_bytes() == before


def test_an_older_store_is_set_aside(filled, caplog, monkeypatch):
    folder, values = filled
    monkeypatch.setattr(schema, "VERSION", 2)
    assert goes_on(folder, values, caplog) == 0
    assert "earlier version of prefopt (schema 1; this one needs 2)" in caplog.text
    assert "set aside" in caplog.text


def test_a_database_of_another_program_is_left_alone(tmp_path, caplog):
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    connection.close()
    in_memory_only(tmp_path, caplog, "another program")


def test_a_folder_that_cannot_be_made(tmp_path, caplog):
    (tmp_path / "file").touch()
    in_memory_only(tmp_path / "file" / "folder", caplog, "Not a directory")


def test_a_full_disk_sends_values_to_memory(filled, caplog):
    folder, values = filled
    store, more = opened(folder), values_of(900)
    (pages,) = store.database.connection.execute("PRAGMA page_count").fetchone()
    store.database.connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    add_all(store, more)
    assert known(store, more) == len(more)
    assert 0 < store.in_memory < len(more)
    (told,) = caplog.messages
    assert "cannot be written (database or disk is full)" in told
    assert "for this run only" in told
    assert "Free or name another folder" in told
    store.finish()
    store.database.close()
    again = opened(folder)
    assert known(again, values) == len(values)
    assert known(again, more) >= len(more) - store.in_memory
    again.database.close()


def elsewhere(work, folder, log):
    """Run ``work()`` in a process that cannot write what is not its own; return its answer."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def run():
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        answers.put((work(), [record.getMessage() for record in log.records]))

    process = context.Process(target=run)
    process.start()
    answer = answers.get(timeout=60)
    process.join()
    return answer


@pytest.fixture
def shared_folder():
    """A folder that others can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="prefopt-store-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_file_that_outgrows_its_limit_sends_values_to_memory(tmp_path, caplog):
    """As a quota does: writing fails with an error of the operating system."""
    values = values_of(900)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        store = opened(tmp_path)
        add_all(store, values)
        return known(store, values), store.in_memory

    tmp_path.chmod(0o777)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=lambda: answers.put((work(), caplog.messages)))
    process.start()
    (found, in_memory), told = answers.get(timeout=60)
    process.join()
    assert found == len(values)
    assert 0 < in_memory < len(values)
    assert ["cannot be written" in line for line in told] == [True]
    again = opened(tmp_path)
    assert known(again, values) >= len(values) - in_memory
    again.database.close()


@pytest.mark.parametrize("open_elsewhere", [False, True], ids=["closed", "open elsewhere"])
def test_a_read_only_store_is_read(shared_folder, caplog, open_elsewhere):
    store, values, more = opened(shared_folder), values_of(50), {b"k" * 16: np.ones(3, np.float32)}
    add_all(store, values)
    if not open_elsewhere:
        store.finish()
        store.database.close()
    for file in shared_folder.iterdir():
        file.chmod(0o444)
    shared_folder.chmod(0o555)

    def work():
        readonly = opened(shared_folder)
        add_all(readonly, more)
        return known(readonly, values), known(readonly, more), readonly.in_memory

    answer, told = elsewhere(work, shared_folder, caplog.handler)
    assert answer == (len(values), 1, 1)
    assert len(told) == 1
    assert "cannot be written" in told[0]
    assert "for this run only" in told[0]
    store.database.close()


def test_a_read_only_folder_without_a_store(shared_folder, caplog):
    shared_folder.chmod(0o555)
    answer, told = elsewhere(
        lambda: open_database(shared_folder) is None, shared_folder, caplog.handler
    )
    assert answer
    assert "kept in memory, for this run only" in told[0]


def test_a_damaged_file_that_cannot_be_set_aside_is_read_as_far_as_it_goes(shared_folder, caplog):
    store, values = opened(shared_folder), values_of(400)
    add_all(store, values)
    store.finish()
    store.database.close()
    path = shared_folder / FILE_NAME
    overwrite(path, fullest(path, index_pages(path)[1:]), b"\x55" * PAGE_BYTES)
    shared_folder.chmod(0o555)

    def work():
        readonly = opened(shared_folder)
        survived = known(readonly, values)
        add_all(readonly, values)
        return survived, known(readonly, values)

    (survived, then), told = elsewhere(work, shared_folder, caplog.handler)
    assert 0 < survived < then == len(values)
    assert any("cannot be written" in line for line in told)


def test_a_folder_that_disappears_does_not_stop_a_run(tmp_path, caplog):
    folder = tmp_path / "store"
    store, values = opened(folder), values_of(200)
    add_all(store, dict(list(values.items())[:100]))
    shutil.rmtree(folder)
    add_all(store, values)
    assert known(store, values) >= 100
    store.finish()
    store.database.close()
    known(store, values)  # a worker that opens it only now
    assert not folder.exists()
    assert any("cannot be" in line for line in caplog.messages)


def test_another_process_that_writes_too_long_does_not_stop_a_run(filled, caplog, monkeypatch):
    folder, values = filled
    monkeypatch.setattr(schema, "BUSY_S", 0.2)
    store = opened(folder)
    other = Database(folder / FILE_NAME)
    other.connection.execute("BEGIN IMMEDIATE")
    add_all(store, {b"k" * 16: np.ones(3, np.float32)})
    assert known(store, values) == len(values)
    assert store.in_memory == 1
    assert "database is locked" in caplog.text
    other.close()
    store.database.close()


def test_what_is_told_once_is_not_told_again(filled, caplog):
    folder, values = filled
    caplog.set_level(logging.WARNING)
    path = folder / FILE_NAME
    overwrite(path, fullest(path, index_pages(path)[1:]), b"\x55" * PAGE_BYTES)
    store = opened(folder)
    known(store, values)
    known(store, values)
    assert len(caplog.messages) == 1
    store.database.close()
