"""Data prepared ahead of training, ended on the way or not."""

import os
import signal
import subprocess
import sys
import time

import pytest
from datasets import DatasetDict, load_from_disk

from prefopt.data import DataError, prepare_dataset
from prefopt.data import parts as parts_module
from prefopt.data.resumable import check_same_tokens, prepare_to_folder, tokenizer_digest
from tests.conftest import ROOT
from tests.models import tiny_rows, tiny_tokenizer
from tests.runs import steps, trainer


def prepared(rows):
    return prepare_dataset(rows, tiny_tokenizer()).dataset.to_dict()


@pytest.mark.parametrize("kind", ["paired", "unpaired", "ranked"])
def test_rows_are_those_that_training_would_prepare(tmp_path, kind):
    rows = tiny_rows(11, kind)
    (report,) = prepare_to_folder(rows, tiny_tokenizer(), tmp_path / "out", rows_per_part=4)
    assert (report.rows, sum(report.kinds.values())) == (11, 11)
    assert load_from_disk(str(tmp_path / "out")).to_dict() == prepared(rows)
    assert not (tmp_path / "out" / ".parts").exists()


def test_splits_stay_apart(tmp_path):
    splits = {"train": tiny_rows(5), "test": tiny_rows(3, seed=1)}
    prepare_to_folder(DatasetDict(splits), tiny_tokenizer(), tmp_path / "out")
    loaded = load_from_disk(str(tmp_path / "out"))
    assert {name: rows.to_dict() for name, rows in loaded.items()} == {
        name: prepared(rows) for name, rows in splits.items()
    }


def test_it_goes_on_where_it_was_ended(tmp_path, monkeypatch):
    rows, made = tiny_rows(10), []
    of_part = parts_module._of_part

    def until(function, first, *given, **options):
        made.append(first)
        if len(made) == 3:
            raise KeyboardInterrupt
        return of_part(function, first, *given, **options)

    monkeypatch.setattr(parts_module, "_of_part", until)
    with pytest.raises(KeyboardInterrupt):
        prepare_to_folder(rows, tiny_tokenizer(), tmp_path / "out", rows_per_part=2)
    prepare_to_folder(rows, tiny_tokenizer(), tmp_path / "out", rows_per_part=2)
    assert made == [0, 2, 4, 4, 6, 8]
    assert load_from_disk(str(tmp_path / "out")).to_dict() == prepared(rows)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match=r"has mine\.txt in it: name a new folder"):
        prepare_to_folder(tiny_rows(3), tiny_tokenizer(), tmp_path)
    with pytest.raises(DataError, match="a stream cannot be prepared ahead"):
        prepare_to_folder(tiny_rows(3).to_iterable_dataset(), tiny_tokenizer(), tmp_path / "stream")


def test_training_on_it_is_training_on_the_rows(tmp_path):
    rows = tiny_rows(12)
    prepare_to_folder(rows, tiny_tokenizer(), tmp_path / "out")
    losses = []
    for data in (rows, load_from_disk(str(tmp_path / "out"))):
        run = trainer(tmp_path / "run", data)
        run.train()
        losses.append([entry["loss"] for entry in steps(run)])
    assert losses[0] == losses[1]


def test_another_tokenizer_or_a_greater_length_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    prepare_to_folder(tiny_rows(3), tokenizer, tmp_path / "out", max_length=64)
    rows = load_from_disk(str(tmp_path / "out"))
    check_same_tokens(rows, tokenizer, 64, "train")
    check_same_tokens(tiny_rows(3), tokenizer, None, "train")
    for length in (65, None):
        with pytest.raises(DataError, match="was prepared with max_length=64, which cut it"):
            check_same_tokens(rows, tokenizer, length, "train")
    other = tiny_tokenizer()
    other.chat_template = "another"
    with pytest.raises(DataError, match=r"train.*was prepared with another tokenizer"):
        check_same_tokens(rows, other, 64, "train")
    with pytest.raises(DataError, match="was prepared with another tokenizer"):
        trainer(tmp_path / "run", rows, processing_class=other, max_length=64)


def test_the_digest_of_a_tokenizer_does_not_depend_on_how_it_was_last_called():
    tokenizer, before = tiny_tokenizer(), tokenizer_digest(tiny_tokenizer())
    tokenizer(["a b"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_digest(tokenizer) == before
    tokenizer.add_tokens(["one more"])
    assert tokenizer_digest(tokenizer) != before


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path):
    """``kill -9`` once the first parts are there; the same command then ends with all rows."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = tiny_rows(20_000)
    rows.to_json(tmp_path / "rows.jsonl")
    command = [sys.executable, "-m", "prefopt", "data", "prepare", str(tmp_path / "rows.jsonl")]
    command += ["--tokenizer", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    options = {
        "cwd": ROOT,
        "env": os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "c"),
        },
    }
    killed = subprocess.Popen(command, **options, stderr=subprocess.DEVNULL)
    parts = tmp_path / "out" / ".parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.arrow"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    there = {file: file.stat().st_mtime_ns for file in parts.glob("*.arrow")}
    assert 2 <= len(there) < 10
    done = subprocess.run(command, **options, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "20,000 rows in" in done.stdout
    assert load_from_disk(str(tmp_path / "out")).num_rows == 20_000
