"""``prefopt cache``: each command on a store that a tiny model filled, and what goes wrong."""

import json
import re
import shutil
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from safetensors.torch import load_file, save_file

from prefopt.cli import cache
from prefopt.reference import Database, default_folder
from prefopt.reference.store.logp_store import FILE_NAME
from prefopt.toy import sample_pairs
from tests.cli.conftest import write_rows

QUIET = ("--report_to=none", "--use_cpu", "--disable_tqdm=true")


@pytest.fixture(scope="module")
def run_of(model_folder, data_files):
    """The options of a run on a kind of data."""

    def options(kind="paired", model=model_folder, **more):
        named = [f"--{name}={value}" for name, value in more.items()]
        return ("--model", model, "--dataset", data_files[kind], *QUIET, *named)

    return options


@pytest.fixture(scope="module")
def filled_folder(tmp_path_factory, run_of):
    """Folder of a store that holds the log-probs of the pairs; not to be changed."""
    folder = tmp_path_factory.mktemp("filled")
    assert cache.main(["fill", *map(str, run_of(cache_dir=folder))]) == 0
    return folder


@pytest.fixture
def filled(filled_folder):
    """The same store at the place where commands look; may be changed."""
    shutil.copytree(filled_folder, default_folder(), dirs_exist_ok=True)
    return default_folder() / FILE_NAME


@pytest.fixture(scope="module")
def other_model(model_folder, tmp_path_factory) -> Path:
    """The tiny model with one weight changed."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def info(prefopt):
    """Return what `info --json` says."""
    result = prefopt("cache", "info", "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def reference_of(path):
    """Return number and fingerprint of the only reference of a store."""
    (row,) = Database(path).connection.execute("SELECT id, fingerprint FROM reference").fetchall()
    return row


def values_in(path):
    """Return the log-probs of a store, by fingerprint and key."""
    database = Database(path)
    rows = database.connection.execute(
        "SELECT r.id, r.fingerprint, c.key FROM completion c JOIN reference r ON r.id = c.reference"
    ).fetchall()
    return {(name, key): database.get(number, name, key).tobytes() for number, name, key in rows}


def damage_a_value(path):
    """Change one stored log-prob behind the back of its checksum."""
    with sqlite3.connect(path) as connection:
        (blob,) = connection.execute("SELECT logps FROM piece WHERE id = 1").fetchone()
        changed = (np.frombuffer(blob, "<f4") - 1).tobytes()
        connection.execute("UPDATE piece SET logps = ? WHERE id = 1", (changed,))
    connection.close()


# Fill ---------------------------------------------------------------------------------------------


def test_fill_says_what_was_computed_and_leaves_only_the_store(
    prefopt, run_of, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = prefopt("cache", "fill", *run_of(cache_dir=tmp_path / "store"))
    assert result.code == 0, result.err
    assert re.search(r"computed +48 completions in [\d.]+ s", result.out)
    assert re.search(r"fingerprint +[0-9a-f]{32}\n", result.out)
    assert str(tmp_path / "store" / FILE_NAME) in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    again = prefopt("cache", "fill", *run_of(cache_dir=tmp_path / "store"))
    assert re.search(r"computed +0 completions", again.out)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("paired", {"loss_type": "ipo", "eval_fraction": 0.25, "max_length": 60}),
        ("unpaired", {"loss_type": "kto", "per_device_train_batch_size": 4}),
        ("paired", {"use_peft": "true", "lora_r": 2}),
    ],
)
def test_a_run_after_fill_computes_nothing(prefopt, run_of, tmp_path, monkeypatch, kind, options):
    assert prefopt("cache", "fill", *run_of(kind, **options)).code == 0
    before = values_in(default_folder() / FILE_NAME)

    from prefopt.reference.fill import Filler

    monkeypatch.setattr(Filler, "_compute", lambda *_: pytest.fail("something was missing"))
    result = prefopt(
        *("train", *run_of(kind, **options), "--max_steps=2", "--learning_rate=1e-3"),
        *("--beta=0.3", f"--output_dir={tmp_path}"),
    )
    assert result.code == 0, result.err
    assert before
    assert values_in(default_folder() / FILE_NAME) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "orpo"}, "the loss 'orpo' uses no reference"),
        ({"dataset_streaming": "true", "max_steps": 1}, "a stream is not known before it is read"),
        ({"reference": "live"}, "keeps nothing"),
        ({"loss_tipe": "ipo"}, "unknown option '--loss_tipe'; did you mean '--loss_type'"),
    ],
)
def test_fill_refuses_what_it_cannot_keep(prefopt, run_of, options, message):
    result = prefopt("cache", "fill", *run_of(**options))
    assert result.code == 2
    assert message in result.err


def test_fill_needs_a_store_that_can_be_written(prefopt, run_of, tmp_path):
    (tmp_path / "file").write_text("")
    result = prefopt("cache", "fill", *run_of(cache_dir=tmp_path / "file"))
    assert result.code == 2
    assert "file" in result.err


def test_fill_fails_where_the_disk_is_full(prefopt, run_of, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Database, "put", full)
    result = prefopt("cache", "fill", *run_of())
    assert result.code == 1
    assert re.search(r"not kept +48 completions", result.out)


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


def test_verify_computes_a_sample_again(prefopt, filled, run_of):
    used = info(prefopt)["references"][0]["used"]
    result = prefopt("cache", "verify", "--sample", "20", *run_of())
    assert result.code == 0, result.err
    assert "48 completions of this data; 0 are missing" in result.out
    assert re.search(r"compared +20 completions", result.out)
    assert float(re.search(r"largest +(\S+)", result.out)[1]) < 1e-4
    assert "accepted     0.001 nats" in result.out
    assert info(prefopt)["references"][0]["used"] == used


def test_verify_finds_values_that_are_whole_but_wrong(prefopt, filled, run_of):
    number, fingerprint = reference_of(filled)
    database = Database(filled)
    ((key, origin), *_) = database.connection.execute("SELECT key, origin FROM completion")
    wrong = database.get(number, fingerprint, key).copy()
    wrong[2] -= 0.25
    with database.writing() as connection:
        connection.execute("DELETE FROM completion WHERE key = ?", (key,))
    database.put(number, fingerprint, origin, [(key, wrong)])
    assert prefopt("cache", "verify").code == 0
    result = prefopt("cache", "verify", *run_of())
    assert result.code == 1
    assert re.search(r"largest +0\.25 nats", result.out)
    assert "does NOT agree" in result.out


def test_verify_says_what_is_missing_and_computes_nothing_of_it(prefopt, filled, run_of):
    with sqlite3.connect(filled) as connection:
        connection.execute(
            "DELETE FROM completion WHERE key IN (SELECT key FROM completion LIMIT 8)"
        )
    connection.close()
    result = prefopt("cache", "verify", *run_of())
    assert result.code == 0
    assert "40 completions of this data; 8 are missing" in result.out
    assert info(prefopt)["references"][0]["completions"] == 40


def test_verify_fails_where_nothing_of_the_data_is_known(
    prefopt, filled, run_of, model_folder, tmp_path
):
    rows = write_rows(tmp_path / "rows.jsonl", sample_pairs(4, seed=9))
    result = prefopt("cache", "verify", "--model", model_folder, "--dataset", rows, *QUIET)
    assert result.code == 1
    assert "nothing was verified" in result.out


def test_verify_names_a_reference_that_the_store_does_not_know(
    prefopt, filled, run_of, other_model
):
    known = reference_of(filled)[1]
    result = prefopt("cache", "verify", *run_of(model=other_model))
    assert result.code == 2
    assert "has no log-probs of this reference" in result.err
    assert re.search(rf"The nearest that it has, {known[:12]}.* has other weights$", result.err)
    assert len(info(prefopt)["references"]) == 1  # looking adds none


# Prune --------------------------------------------------------------------------------------------


@pytest.fixture
def two(prefopt, filled, run_of, other_model):
    """A store with two references; fingerprints, the longer unused first."""
    assert prefopt("cache", "fill", *run_of(model=other_model)).code == 0
    return [item["fingerprint"] for item in reversed(info(prefopt)["references"])]


def left(prefopt):
    """Return the fingerprints that a store has."""
    return [item["fingerprint"] for item in info(prefopt)["references"]]


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


def test_what_was_pruned_is_computed_again(prefopt, filled, two, run_of):
    before = values_in(filled)
    assert prefopt("cache", "prune", "--reference", two[0], "--yes").code == 0
    result = prefopt("cache", "fill", *run_of())
    assert re.search(r"computed +48 completions", result.out)
    assert values_in(filled) == before


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
    from prefopt.reference.store import maintain

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


def test_training_uses_what_was_imported(prefopt, filled, run_of, tmp_path):
    path = tmp_path / "logps.parquet"
    assert prefopt("cache", "export", path).code == 0
    assert prefopt("cache", "import", path, "--cache-dir", tmp_path / "new").code == 0
    result = prefopt("cache", "fill", *run_of(cache_dir=tmp_path / "new"))
    assert re.search(r"computed +0 completions", result.out)
    assert re.search(r"kept of it +48 completions", result.out)


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
    assert "48 completions of 1 references" in result.out
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


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1500", 1500), ("2G", 2 * 10**9), ("1.5 MiB", 3 << 19), ("3kB", 3000)],
)
def test_sizes_are_read_with_their_units(text, size):
    assert cache._size(text) == size
