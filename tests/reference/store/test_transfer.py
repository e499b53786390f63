"""A store as parquet: bit by bit, in bounded parts, and nothing false comes in."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME
from prefopt.reference.store.maintain import references_of
from prefopt.reference.store.transfer import (
    SCHEMA,
    TransferError,
    export_store,
    import_store,
    parquet_files,
)

FINGERPRINT = "0123456789abcdef" * 2
FACTS = {"model": "LlamaForCausalLM", "dtype": "float32"}
ODD = np.array([np.nan, -np.inf, -0.0, 1e-42, -3.25], dtype=np.float32)
ODD.view(np.uint32)[0] |= 5  # a NaN with a payload


def key_of(number):
    return number.to_bytes(16, "big")


def store_in(folder, values, facts=FACTS, origin=None):
    folder.mkdir(exist_ok=True)
    database = Database(folder / FILE_NAME)
    number = database.reference(FINGERPRINT, facts)
    database.put(number, FINGERPRINT, database.origin(origin or {"device": "cpu"}), values)
    return database


def values_of(database):
    return {
        key: database.get(number, FINGERPRINT, key).tobytes()
        for number, key in database.connection.execute("SELECT reference, key FROM completion")
    }


@pytest.fixture
def exported(tmp_path):
    """A store and its export: odd values, no tokens at all, and several pieces."""
    values = [
        (key_of(1), ODD),
        (key_of(2), np.zeros(0, dtype=np.float32)),
        (key_of(3), -np.arange(1000, dtype=np.float32)),
    ]
    database = store_in(tmp_path / "old", values)
    path = tmp_path / "out.parquet"
    export_store(database, references_of(database), path)
    return database, path


def changed(path, tmp_path, **columns):
    """Return a copy of an export with other columns."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        if values is None:
            table = table.remove_column(place)
        else:
            array = values if isinstance(values, pa.Array) else pa.array(values)
            table = table.set_column(place, name, array)
    pq.write_table(table, tmp_path / "changed.parquet")
    return tmp_path / "changed.parquet"


def test_every_bit_facts_and_origins_come_back(exported, tmp_path):
    database, path = exported
    new = Database(tmp_path / "new.sqlite")
    done = import_store(new, path)
    assert (done.added, done.known, done.refused) == (3, 0, 0)
    assert values_of(new) == values_of(database)
    assert values_of(new)[key_of(1)] == ODD.tobytes()
    (info,) = references_of(new)
    assert (info.fingerprint, info.facts) == (FINGERPRINT, FACTS)
    assert info.origins == ({"device": "cpu", "completions": 3},)


def test_two_exports_of_one_content_are_one_file(exported, tmp_path):
    database, path = exported
    other = store_in(tmp_path / "other", [])
    number = other.reference(FINGERPRINT, FACTS)
    for key in (key_of(3), key_of(1), key_of(2)):
        logps = database.get(1, FINGERPRINT, key)
        other.put(number, FINGERPRINT, other.origin({"device": "cpu"}), [(key, logps)])
    export_store(other, references_of(other), tmp_path / "other.parquet")
    assert (tmp_path / "other.parquet").read_bytes() == path.read_bytes()


def test_what_is_known_stays_as_it_is(exported, tmp_path):
    _, path = exported
    mine = np.full(5, -9.0, dtype=np.float32)
    new = store_in(tmp_path / "new", [(key_of(1), mine)], facts={"model": "mine"})
    done = import_store(new, path)
    assert (done.added, done.known, done.refused) == (2, 1, 0)
    assert values_of(new)[key_of(1)] == mine.tobytes()
    assert references_of(new)[0].facts == {"model": "mine"}


def test_a_damaged_value_of_the_store_is_replaced_by_what_is_imported(exported, tmp_path):
    database, path = exported
    with database.writing() as connection:
        connection.execute("UPDATE piece SET logps = ? WHERE id = 1", (bytes(20),))
    assert database.get(1, FINGERPRINT, key_of(1)) is None
    done = import_store(database, path)
    assert (done.added, done.known) == (1, 2)
    assert values_of(database)[key_of(1)] == ODD.tobytes()


def test_row_groups_are_bounded(tmp_path):
    values = [(key_of(i), np.full(2, -1.0, dtype=np.float32)) for i in range(10_000)]
    database = store_in(tmp_path / "old", values)
    done = export_store(database, references_of(database), tmp_path / "out.parquet")
    assert done.completions == 10_000
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert max(rows) <= 4096
    facts = pq.read_table(tmp_path / "out.parquet")["facts"].to_pylist()
    assert sum(text is not None for text in facts) == len(rows)
    assert import_store(Database(tmp_path / "new.sqlite"), tmp_path / "out.parquet").added == 10_000


def test_a_row_group_holds_a_limited_number_of_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr("prefopt.reference.store.transfer._MOST_TOKENS", 100)
    values = [(key_of(i), np.full(60, -1.0, dtype=np.float32)) for i in range(10)]
    database = store_in(tmp_path / "old", values)
    export_store(database, references_of(database), tmp_path / "out.parquet")
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == 5


def test_wider_offsets_are_read_too(exported, tmp_path):
    database, path = exported
    table = pq.read_table(path)
    wide = changed(
        path,
        tmp_path,
        logps=table["logps"].combine_chunks().cast(pa.large_list(pa.float32())),
        key=table["key"].combine_chunks().cast(pa.large_string()),
    )
    new = Database(tmp_path / "new.sqlite")
    assert import_store(new, wide).added == 3
    assert values_of(new) == values_of(database)


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("prefopt.reference.store.transfer._MOST_TOKENS", 1 << 16)
    rng, peaks = np.random.default_rng(0), []
    for count in (200, 1600):  # 0.8 and 6.4 MB that nothing can compress
        values = [(key_of(i), rng.random(1000, dtype=np.float32)) for i in range(count)]
        database = store_in(tmp_path / f"old-{count}", values)
        path = tmp_path / f"{count}.parquet"
        export_store(database, references_of(database), path)
        before, peak = pa.total_allocated_bytes(), 0

        def watched(new, *arguments, put=Database.put):
            nonlocal peak
            peak = max(peak, pa.total_allocated_bytes())
            return put(new, *arguments)

        monkeypatch.setattr(Database, "put", watched)
        assert import_store(Database(tmp_path / f"new-{count}.sqlite"), path).added == count
        monkeypatch.undo()
        monkeypatch.setattr("prefopt.reference.store.transfer._MOST_TOKENS", 1 << 16)
        peaks.append(peak - before)
    assert 0 < peaks[1] < 2 * peaks[0]


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"logps": pa.array([[1.0], [], [2.0]], pa.list_(pa.float32()))},
        {"logps": pa.array([None, None, None], pa.list_(pa.float32()))},
        {"tokens": pa.array([4, 1, 999], pa.int32())},
        {"checksum": pa.array([0, 0, None], pa.int32())},
        {"fingerprint": ["f" * 32] * 3},  # values of another reference
        {"fingerprint": ["../../etc/passwd", None, FINGERPRINT.upper()]},
        {"key": [key_of(i).hex() for i in (11, 12, 13)]},  # values of other texts
        {"key": ["zz" * 16, "00" * 15, None]},
        {"origin": ["no JSON", "[]", None]},
    ],
)
def test_rows_that_are_not_what_they_were_are_refused(exported, tmp_path, columns):
    _, path = exported
    new = Database(tmp_path / "new.sqlite")
    done = import_store(new, changed(path, tmp_path, **columns))
    if "logps" in columns and columns["logps"].null_count == 0:
        assert (done.added, done.refused) == (1, 2)  # no tokens is what the second row had
    else:
        assert (done.added, done.refused) == (0, 3)
        assert values_of(new) == {}
        assert references_of(new) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"version": pa.array([1, 1, 2], pa.int32())}, "has rows of format 2; .* reads 1"),
        ({"version": pa.array([None] * 3, pa.int32())}, "has rows of format None"),
        ({"checksum": None}, "has no column 'checksum'"),
        (
            {"logps": pa.array([[1.0]] * 3, pa.list_(pa.float64()))},
            "'logps' is list<.*double>, not",
        ),
        ({"tokens": pa.array([1.0] * 3)}, "'tokens' is double, not int32"),
    ],
)
def test_files_of_another_format_are_refused_before_anything_is_added(
    exported, tmp_path, columns, message
):
    _, path = exported
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.parquet").write_bytes(path.read_bytes())
    changed(path, tmp_path, **columns).rename(tmp_path / "folder" / "b.parquet")
    new = Database(tmp_path / "new.sqlite")
    with pytest.raises(TransferError, match=message):
        import_store(new, tmp_path / "folder")
    assert values_of(new) == {}


def test_a_file_that_is_cut_off_or_no_parquet_is_refused(exported, tmp_path):
    _, path = exported
    for content in (path.read_bytes()[:-100], b"no parquet"):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(TransferError, match="is no parquet file, or is damaged"):
            import_store(Database(tmp_path / "new.sqlite"), tmp_path / "bad.parquet")


def test_a_page_of_a_file_that_was_changed_brings_in_nothing_false(exported, tmp_path):
    database, path = exported
    known = values_of(database)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial, place in enumerate(rng.integers(4, len(content), 60)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "bad.parquet").write_bytes(damaged)
        new = Database(tmp_path / f"new-{trial}.sqlite")
        try:
            import_store(new, tmp_path / "bad.parquet")
        except TransferError:
            continue
        assert values_of(new).items() <= known.items()


def test_an_empty_folder_holds_nothing_to_import(tmp_path):
    with pytest.raises(FileNotFoundError, match="no parquet file in"):
        parquet_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file"):
        parquet_files(tmp_path / "none")


def test_an_export_that_fails_leaves_no_file(exported, tmp_path, monkeypatch):
    database, _ = exported

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        export_store(database, references_of(database), tmp_path / "new.parquet")
    assert list(tmp_path.glob("new*")) == []


def test_the_columns_are_those_that_are_documented(exported):
    _, path = exported
    schema = pq.read_schema(path)
    assert schema.equals(SCHEMA)
    row = pq.read_table(path).to_pylist()[0]
    assert (row["fingerprint"], row["key"]) == (FINGERPRINT, key_of(1).hex())
    assert json.loads(row["facts"]) == FACTS
    assert json.loads(row["origin"]) == {"device": "cpu"}
