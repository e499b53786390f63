"""``prefopt cache fill`` and ``verify`` with the options of a training run."""

import re
import sqlite3

import pytest

from prefopt.reference import default_folder
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME
from prefopt.toy import sample_pairs
from tests.cli.cache.conftest import QUIET, info, reference_of, values_in
from tests.cli.conftest import write_rows

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


@pytest.mark.parametrize("command", ["fill", "verify"])
def test_rows_that_cannot_be_loaded_are_one_message(prefopt, filled, run_of, tmp_path, command):
    broken = tmp_path / "rows.jsonl"
    broken.write_text("this is no row\n")
    result = prefopt("cache", command, *run_of(), "--dataset", broken)
    assert result.code == 2
    assert "rows.jsonl" in result.err


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


def test_what_was_pruned_is_computed_again(prefopt, filled, two, run_of):
    before = values_in(filled)
    assert prefopt("cache", "prune", "--reference", two[0], "--yes").code == 0
    result = prefopt("cache", "fill", *run_of())
    assert re.search(r"computed +48 completions", result.out)
    assert values_in(filled) == before


def test_training_uses_what_was_imported(prefopt, filled, run_of, tmp_path):
    path = tmp_path / "logps.parquet"
    assert prefopt("cache", "export", path).code == 0
    assert prefopt("cache", "import", path, "--cache-dir", tmp_path / "new").code == 0
    result = prefopt("cache", "fill", *run_of(cache_dir=tmp_path / "new"))
    assert re.search(r"computed +0 completions", result.out)
    assert re.search(r"kept of it +48 completions", result.out)


# Verify -------------------------------------------------------------------------------------------


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
