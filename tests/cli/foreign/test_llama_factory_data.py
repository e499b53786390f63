"""LLaMA-Factory's data: what its descriptions of datasets become, read back as rows."""

import json

import pytest

from prefopt.cli.foreign import convert
from prefopt.cli.rows import DatasetEntry
from prefopt.data.formats import read_example

BASE = {"model_name_or_path": "m", "stage": "dpo", "output_dir": "out", "dataset": "d"}
RANKED = {"chosen": "chosen", "rejected": "rejected"}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def converted(info, **values):
    made = convert({**BASE, "dataset_dir": {"d": info}, **values}, "x.yaml")
    assert made is not None
    return made


def first_row(tmp_path, info, row, **values):
    """Return the first row of a file as training reads it."""
    (tmp_path / "d.json").write_text(json.dumps([row, row]))
    made = converted({"file_name": str(tmp_path / "d.json"), **info}, **values)
    assert not made.lost, made.message("x.yaml")
    (entry,) = made.options["datasets"]
    return read_example(DatasetEntry.read(entry).load()[0], 0)


def test_alpaca_pairs_are_read_by_their_columns(tmp_path):
    columns = {"prompt": "ask", "query": "about", "system": "sys", "history": "past"}
    info = {"ranking": True, "columns": {**columns, "chosen": "good", "rejected": "bad"}}
    row = {
        "ask": "Add",
        "about": "2 + 2",
        "sys": "Be brief.",
        "past": [["Hi", "Hello"]],
        "good": "4",
        "bad": "5",
        "chosen": "not read",
        "input": "not read",
    }
    example = first_row(tmp_path, info, row)
    assert example.kind == "paired"
    assert example.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Add\n2 + 2"},
    ]
    assert [answer[0]["content"] for answer in example.completions] == ["4", "5"]


def test_alpaca_without_an_input_column_reads_none(tmp_path):
    info = {"ranking": True, "columns": {"prompt": "instruction", **RANKED}}
    row = {"instruction": "Add", "input": "not read", "chosen": "4", "rejected": "5"}
    assert first_row(tmp_path, info, row).prompt == [{"role": "user", "content": "Add"}]


def test_alpaca_thumbs_have_a_label(tmp_path):
    columns = {"prompt": "instruction", "response": "answer", "kto_tag": "liked"}
    row = {"instruction": "Add", "answer": "4", "liked": False}
    example = first_row(tmp_path, {"columns": columns}, row, stage="kto")
    assert (example.kind, example.prompt) == ("unpaired", [{"role": "user", "content": "Add"}])
    assert example.completions == [[{"role": "assistant", "content": "4"}]]


@pytest.mark.parametrize("style", ["sharegpt", "openai"])
def test_pairs_after_a_conversation(tmp_path, style):
    keys = ("from", "value") if style == "sharegpt" else ("role", "content")
    names = ("human", "gpt") if style == "sharegpt" else ("user", "assistant")

    def said(who, text):
        return dict(zip(keys, (names[who], text), strict=True))

    info = {"formatting": style, "ranking": True, "columns": {"messages": "talk", **RANKED}}
    info |= {"tags": TAGS} if style == "openai" else {}
    row = {"talk": [said(0, "Add")], "chosen": said(1, "4"), "rejected": said(1, "5")}
    example = first_row(tmp_path, info, row)
    assert example.prompt == [{"role": "user", "content": "Add"}]
    assert [answer[0]["content"] for answer in example.completions] == ["4", "5"]


def test_thumbs_of_a_conversation(tmp_path):
    info = {"formatting": "sharegpt", "columns": {"messages": "talk", "kto_tag": "liked"}}
    talk = [{"from": "human", "value": "Add"}, {"from": "gpt", "value": "4"}]
    example = first_row(tmp_path, info, {"talk": talk, "liked": True}, stage="kto")
    assert (example.kind, example.prompt) == ("unpaired", [{"role": "user", "content": "Add"}])
    assert example.completions == [[{"role": "assistant", "content": "4"}]]


def test_a_dataset_of_the_hub_keeps_its_split_and_configuration():
    info = {"hf_hub_url": "org/d", "subset": "en", "split": "train_prefs", "folder": "f"}
    info |= {"ranking": True, "columns": {"prompt": "prompt", **RANKED}, "num_samples": 5}
    (entry,) = converted(info, max_samples=9).options["datasets"]
    assert entry == {
        "path": "org/d",
        "split": "train_prefs",
        "name": "en",
        "data_dir": "f",
        "columns": ["prompt", "chosen", "rejected"],
        "rename": {"prompt": "instruction"},
        "limit": 5,
    }


PAIRS = {"file_name": "d.json", "ranking": True, "columns": {"prompt": "prompt", **RANKED}}


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({**PAIRS, "ranking": False}, "LLaMA-Factory refuses in the stage dpo too"),
        ({**PAIRS, "columns": {"prompt": "p"}}, "do not name chosen"),
        ({**PAIRS, "columns": RANKED}, "neither prompt nor query"),
        ({**PAIRS, "columns": {**PAIRS["columns"], "images": "i"}}, "images, audio or video"),
        ({**PAIRS, "formatting": "csv"}, "formatting 'csv'"),
        ({**PAIRS, "colums": {}}, "a key 'colums'"),
        ({"ranking": True, "ms_hub_url": "x"}, "nor on the Hub of Hugging Face"),
        ({**PAIRS, "formatting": "sharegpt", "tags": {"role_tag": "who"}}, "keys who and value"),
        ({**PAIRS, "formatting": "sharegpt", "tags": {"user_tag": "wizard"}}, "the user 'wizard'"),
    ],
)
def test_what_cannot_be_expressed_says_why(info, said):
    (line,) = converted(info).lost
    assert line.keys == ("dataset",)
    assert said in line.note


def test_a_name_that_is_not_described_is_told_with_those_that_are():
    (line,) = converted(PAIRS, dataset="e").lost
    assert "has no dataset 'e'; it has d" in line.note


def test_a_missing_description_says_what_to_write(tmp_path):
    made = convert({**BASE, "dataset_dir": str(tmp_path)}, tmp_path / "x.yaml")
    assert f"there is no {tmp_path / 'dataset_info.json'}" in made.lost[0].note
    assert "rename: {theirs: prompt}" in made.lost[0].note


@pytest.mark.parametrize(("size", "ours"), [(0.1, {"eval_fraction": 0.1}), (7, {"eval_rows": 7})])
def test_a_part_is_held_out(size, ours):
    assert ours.items() <= converted(PAIRS, val_size=size).options.items()


def test_a_stream_of_several_datasets_is_refused():
    made = converted(PAIRS, streaming=True, max_steps=3)
    assert [line.keys for line in made.lost] == [("streaming",)]
