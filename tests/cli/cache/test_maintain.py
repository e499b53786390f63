"""``prefopt cache`` on a store as it is: what each command does, and what goes wrong."""

import json
import sqlite3
import time

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from prefopt.cli.cache import maintain
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME
from tests.cli.cache.conftest import damage_a_value, info, reference_of, values_in


def left(prefopt):
    """Return the fingerprints that a store has."""
    return [item["fingerprint"] for item in info(prefopt)["references"]]


# Info ---------------------------------------------------------------------------------------------


def test_info_as_json_describes_the_store(prefopt, filled, model_folder):
    found = info(prefopt)
    assert found["path"] == str(filled)
    assert found["schema_version"] == 1
    assert found["bytes"] >= filled.stat().st_size
    (reference,) = found["references"]
    assert reference["fingerprint"] == reference_of(filled)[1]
    assert reference["model"] == "LlamaForCausalLM"
    assert reference["name_or_path"] == str(model_folder)
    assert (reference["dtype"], reference["quantization"]) == ("float32", None)
    assert reference["adapters"] == []
    assert reference["completions"] == 48
    tokens = sum(len(logps) // 4 for logps in values_in(filled).values())
    assert reference["tokens"] == tokens
    assert 4 * tokens <= reference["bytes"] <= filled.stat().st_size
    assert reference["created"] <= reference["used"]
    (origin,) = reference["origins"]
    assert (origin["device"], origin["dtype"], origin["completions"]) == ("cpu", "float32", 48)
    assert set(origin["versions"]) == {"prefopt", "torch", "transformers"}


def test_info_as_a_table_names_reference_and_origin(prefopt, filled):
    result = prefopt("cache", "info")
    assert result.code == 0
    assert str(filled) in result.out
    assert reference_of(filled)[1][:12] in result.out
    assert "48 on: device cpu" in result.out


def test_control_characters_of_foreign_facts_are_not_printed(prefopt, filled):
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE reference SET facts = ?", (json.dumps({"model": "a\x1b[2Jb"}),))
    connection.close()
    result = prefopt("cache", "info")
    assert "\x1b" not in result.out


# What is wrong with a store -----------------------------------------------------------------------

LOOKING = [["info"], ["verify"], ["prune", "--unused-days=0"], ["export", "out.parquet"]]


@pytest.mark.parametrize("command", LOOKING)
def test_a_missing_store_is_told_and_not_made(prefopt, tmp_path, command):
    result = prefopt("cache", *command, "--cache-dir", tmp_path / "none")
    assert result.code == 2
    assert f"there is no store of reference log-probs in {tmp_path / 'none'}" in result.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [*LOOKING, ["import", "PARQUET"], ["fill"]])
def test_a_newer_store_is_refused_by_every_command(prefopt, filled, run_of, tmp_path, command):
    parquet = tmp_path / "in.parquet"
    assert prefopt("cache", "export", parquet).code == 0
    with sqlite3.connect(filled) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    options = run_of() if command == ["fill"] else ()
    result = prefopt(
        "cache", *(parquet if word == "PARQUET" else word for word in command), *options
    )
    assert result.code == 2
    assert "was written by a later version of prefopt (schema 99" in result.err


@pytest.mark.parametrize("command", LOOKING)
def test_a_damaged_store_is_told(prefopt, filled, command):
    filled.write_bytes(b"damaged" * 4096)
    result = prefopt("cache", *command)
    assert result.code == 2
    assert "is damaged (file is not a database)" in result.err
    assert filled.exists()


# Verify -------------------------------------------------------------------------------------------


def test_verify_without_a_model_reads_all(prefopt, filled):
    result = prefopt("cache", "verify")
    assert (result.code, result.err) == (0, "")
    assert "48 completions read: all good" in result.out


def test_verify_without_a_model_finds_a_changed_value(prefopt, filled):
    damage_a_value(filled)
    result = prefopt("cache", "verify")
    assert result.code == 1
    assert f"{reference_of(filled)[1]}: 1 completions do not have their checksum" in result.out


def test_verify_without_a_model_finds_a_damaged_page(prefopt, filled):
    content = bytearray(filled.read_bytes())
    page = len(content) // 2 // 8192
    content[page * 8192 : page * 8192 + 512] = b"\xff" * 512
    filled.write_bytes(content)
    result = prefopt("cache", "verify")
    assert result.code == 1
    assert "damaged" in result.out


# Prune --------------------------------------------------------------------------------------------


def test_prune_says_what_would_go_and_does_it_only_when_told(prefopt, filled, two):
    before, size = values_in(filled), filled.stat().st_size
    result = prefopt("cache", "prune", "--reference", two[0][:8])
    assert result.code == 0
    assert "Would delete 1 of 2 references" in result.out
    assert two[0][:12] in result.out
    assert two[1][:12] not in result.out
    assert values_in(filled) == before

    result = prefopt("cache", "prune", "--reference", two[0][:8], "--yes")
    assert result.code == 0, result.err
    assert "Deleted 1 of 2 references" in result.out
    assert left(prefopt) == [two[1]]
    assert filled.stat().st_size < size
    expected = {name: value for name, value in before.items() if name[0] == two[1]}
    assert values_in(filled) == expected
    assert prefopt("cache", "verify").code == 0


def test_prune_by_age_and_by_size(prefopt, filled, two):
    with sqlite3.connect(filled) as connection:
        connection.execute(
            "UPDATE reference SET used = ? WHERE fingerprint = ?", (time.time() - 9e5, two[0])
        )
    connection.close()
    assert "Nothing to prune" in prefopt("cache", "prune", "--unused-days", "11").out
    result = prefopt("cache", "prune", "--unused-days", "10")
    assert two[0][:12] in result.out
    assert two[1][:12] not in result.out
    assert "Nothing to prune" in prefopt("cache", "prune", "--max-bytes", "1G").out
    most = info(prefopt)["references"][0]["bytes"] + 1000
    assert prefopt("cache", "prune", "--max-bytes", most, "--yes").code == 0
    assert left(prefopt) == [two[1]]
    assert prefopt("cache", "prune", "--max-bytes", "0", "--yes").code == 0
    assert left(prefopt) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to prune"),
        (["--reference", "xyz"], "no fingerprint in the store begins with 'xyz'; there are: "),
        (["--max-bytes", "lots"], "not a size such as 500M"),
        (["--unused-days", "-1"], "not a number of days"),
    ],
)
def test_prune_refuses_wrong_options(prefopt, filled, options, message):
    result = prefopt("cache", "prune", *options)
    assert result.code == 2
    assert message in result.err


def test_an_ambiguous_fingerprint_is_refused(prefopt, filled):
    database = Database(filled)
    database.reference("aa" + "0" * 30, {})
    database.reference("aa" + "1" * 30, {})
    result = prefopt("cache", "prune", "--reference", "aa", "--yes")
    assert result.code == 2
    assert "'aa' is the beginning of 2 fingerprints" in result.err
    assert len(left(prefopt)) == 3


def test_a_full_disk_while_shrinking_is_told(prefopt, filled, two, monkeypatch):

    def full(_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(maintain, "shrink", full)
    result = prefopt("cache", "prune", "--reference", two[0], "--yes")
    assert result.code == 2
    assert "could not be made smaller (database or disk is full)" in result.err
    assert left(prefopt) == [two[1]]


# Export and import --------------------------------------------------------------------------------


def test_a_store_goes_to_parquet_and_back_bit_by_bit(prefopt, filled, two, tmp_path):
    path = tmp_path / "logps.parquet"
    result = prefopt("cache", "export", path)
    assert result.code == 0, result.err
    assert "96 completions of 2 references" in result.out
    result = prefopt("cache", "import", path, "--cache-dir", tmp_path / "new")
    assert result.code == 0, result.err
    assert "96 completions added, 0 known already and left as they are, 0 refused" in result.out
    assert values_in(tmp_path / "new" / FILE_NAME) == values_in(filled)
    again = prefopt("cache", "import", path, "--cache-dir", tmp_path / "new")
    assert "0 completions added, 96 known already" in again.out


def test_datasets_reads_an_export_and_what_it_writes_is_imported(prefopt, filled, tmp_path):
    path = tmp_path / "logps.parquet"
    assert prefopt("cache", "export", path).code == 0
    rows = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "datasets")
    )
    known = values_in(filled)
    for row in rows.with_format("numpy"):
        logps = known[row["fingerprint"].item(), bytes.fromhex(row["key"].item())]
        assert row["logps"].dtype == np.float32
        assert row["logps"].tobytes() == logps
        assert row["tokens"] == len(row["logps"])
    (tmp_path / "folder").mkdir()
    for number in range(2):
        part = rows.shuffle(seed=1).shard(2, number)
        part.to_parquet(tmp_path / "folder" / f"part-{number}.parquet")
    new = tmp_path / "new"
    assert prefopt("cache", "import", tmp_path / "folder", "--cache-dir", new).code == 0
    assert values_in(new / FILE_NAME) == known
    assert Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).features == rows.features


def test_export_of_one_reference(prefopt, filled, two, tmp_path):
    result = prefopt("cache", "export", tmp_path / "one.parquet", "--reference", two[1][:10])
    assert "48 completions of 1 reference," in result.out
    assert prefopt("cache", "import", tmp_path / "one.parquet", "--cache-dir", tmp_path).code == 0
    assert {name for name, _ in values_in(tmp_path / FILE_NAME)} == {two[1]}


def test_export_leaves_out_what_is_damaged_and_overwrites_nothing(prefopt, filled, tmp_path):
    damage_a_value(filled)
    path = tmp_path / "logps.parquet"
    result = prefopt("cache", "export", path)
    assert result.code == 1
    assert "1 completions were left out" in result.out
    result = prefopt("cache", "export", path)
    assert result.code == 2
    assert f"{path} exists" in result.err


def test_import_refuses_changed_rows_and_takes_the_others(prefopt, filled, tmp_path):
    path = tmp_path / "logps.parquet"
    assert prefopt("cache", "export", path).code == 0
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).to_list()
    rows[0]["logps"][1] -= 1.0
    Dataset.from_list(rows, features=None).cast(
        Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).features
    ).to_parquet(tmp_path / "changed.parquet")
    new = tmp_path / "new"
    result = prefopt("cache", "import", tmp_path / "changed.parquet", "--cache-dir", new)
    assert result.code == 1
    assert "47 completions added, 0 known already and left as they are, 1 refused" in result.out
    assert len(values_in(new / FILE_NAME)) == 47


def test_import_of_no_file_makes_no_store(prefopt, tmp_path):
    result = prefopt("cache", "import", tmp_path / "none", "--cache-dir", tmp_path / "new")
    assert result.code == 2
    assert "no file" in result.err
    assert not (tmp_path / "new").exists()
