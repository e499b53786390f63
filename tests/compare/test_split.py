"""Rows divided by prompt, and written."""

import json

import pytest
from datasets import Dataset

from prefopt.compare.split import row_dicts, split_rows, write_split
from prefopt.data import DataError


def rows(prompts):
    return Dataset.from_list(
        [{"prompt": p, "chosen": f" yes {i}", "rejected": " no"} for i, p in enumerate(prompts)]
    )


TWICE = rows([f"prompt {i // 2}" for i in range(200)])


def test_no_prompt_is_on_two_sides_and_no_row_is_lost():
    split = split_rows(TWICE, held_out_size=0.2, validation_size=30)
    parts = [split.train, split.validation, split.held_out]
    assert [len(part) for part in parts] == [130, 30, 40]
    prompts = [set(part["prompt"]) for part in parts]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    chosen = [text for part in parts for text in part["chosen"]]
    assert sorted(chosen) == sorted(TWICE["chosen"])


def test_the_same_seed_divides_alike_and_another_does_not():
    one, same, other = (split_rows(TWICE, seed=seed).held_out["chosen"] for seed in (0, 0, 1))
    assert list(one) == list(same) != list(other)


def test_rows_whose_prompts_are_held_out_are_not_trained_on():
    held_out = rows(["prompt 3", "prompt 5"])
    split = split_rows(TWICE, held_out, validation_size=0)
    assert (len(split.train), len(split.validation)) == (196, 0)
    assert split.notes == ("4 rows are not trained on: their prompts are held out",)
    assert list(split.held_out["prompt"]) == ["prompt 3", "prompt 5"]


def test_what_cannot_be_divided_is_told():
    with pytest.raises(ValueError, match="held_out has no rows"):
        split_rows(rows(["a", "a"]), held_out_size=1)
    with pytest.raises(ValueError, match="no rows are left to train on"):
        split_rows(rows(["a", "b"]), rows(["a", "b"]), validation_size=0)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        split_rows(TWICE, held_out_size=-1)
    with pytest.raises(DataError, match="train data, row 0"):
        split_rows(Dataset.from_list([{"text": "x"}]))


def test_files_hold_the_rows_and_are_written_again_only_if_they_differ(tmp_path):
    split = split_rows(TWICE)
    files = write_split(split, tmp_path)
    assert row_dicts(files.train) == split.train.to_list()
    assert files.sizes == {"train": 170, "validation": 10, "held_out": 20}
    before = files.train.stat().st_mtime_ns
    assert write_split(split, tmp_path) == files
    assert files.train.stat().st_mtime_ns == before
    other = write_split(split_rows(TWICE, seed=1), tmp_path)
    assert other.digests["train"] != files.digests["train"]


def test_rows_that_json_cannot_hold_are_written_as_parquet(tmp_path):
    from datasets import load_dataset

    odd = Dataset.from_list([{**row, "extra": b"\xff"} for row in TWICE])
    files = write_split(split_rows(odd, validation_size=0), tmp_path)
    assert (files.train.name, files.validation) == ("train.parquet", None)
    loaded = load_dataset("parquet", data_files=str(files.train), split="train")
    assert loaded[0]["extra"] == b"\xff"
    assert json.dumps(loaded[0]["prompt"])
