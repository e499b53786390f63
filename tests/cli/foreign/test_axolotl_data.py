"""Axolotl's data: what the types of datasets become, read back as rows."""

import json

import pytest

from prefopt.cli.foreign import convert
from prefopt.cli.rows import DatasetEntry
from prefopt.data.formats import read_example

USER = {"role": "user", "content": "Add"}


def answer(text):
    return {"role": "assistant", "content": text}


def converted(entry, rl="dpo", **values):
    base = {"base_model": "m", "rl": rl, "learning_rate": 1e-6, "datasets": [entry]}
    made = convert({**base, **values}, "x.yml")
    assert made is not None
    return made


def first_row(tmp_path, entry, row, rl="dpo"):
    """Return the first row of a file as training reads it."""
    (tmp_path / "d.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    made = converted({"path": str(tmp_path / "d.jsonl"), **entry}, rl)
    assert not made.lost, made.message("x.yml")
    (ours,) = made.options["datasets"]
    return read_example(DatasetEntry.read(ours).load()[0], 0)


PAIR = {"chosen": "4", "rejected": "5"}
TALK = {"chosen": [USER, answer("4")], "rejected": [USER, answer("5")]}
MESSAGES = [{"from": "human", "value": "Add"}]
FIELDS = {"field_messages": "talk", "field_chosen": "good", "field_rejected": "bad"}
PROPERTIES = {"message_property_mappings": {"role": "from", "content": "value"}}
ROLES = {"roles": {"user": ["human"], "assistant": ["gpt"]}}


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        ({"type": "chatml.intel"}, {"question": "Add", **PAIR}),
        ({"type": "llama3.icr"}, {"input": "Add", **PAIR}),
        ({"type": "chatml.prompt_pairs"}, {"prompt": "Add", **PAIR}),
        ({"type": "chatml.argilla_chat"}, TALK),
        ({"type": "llama3.ultra"}, {"prompt": "Add", **TALK}),
        ({"type": "chat_template.argilla_chat"}, TALK),
        ({"type": "chat_template.argilla"}, TALK | {"prompt": "Add"}),
        ({"type": "chat_template.default"}, {"messages": [USER], **PAIR}),
        ({"type": "chat_template"}, {"messages": [USER], **TALK, "input": "not read"}),
        (
            {"type": "chat_template.default", **FIELDS, **PROPERTIES, **ROLES},
            {
                "talk": MESSAGES,
                "good": {"from": "gpt", "value": "4"},
                "bad": {"from": "gpt", "value": "5"},
            },
        ),
        (
            {"type": "chat_template.default", "field_messages": "said"},
            {"said": "Add", "chosen": answer("4"), "rejected": answer("5")},
        ),
    ],
)
def test_pairs_of_a_chat(tmp_path, entry, row):
    example = first_row(tmp_path, entry, row)
    assert (example.kind, example.prompt) == ("paired", [USER])
    assert [messages[0]["content"] for messages in example.completions] == ["4", "5"]


def test_a_system_column_is_read_where_there_is_one(tmp_path):
    row = {"system": "Be brief.", "question": "Add", **PAIR}
    example = first_row(tmp_path, {"type": "chatml.intel"}, row)
    assert example.prompt == [{"role": "system", "content": "Be brief."}, USER]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"type": None},
        {"type": "passthrough"},
        {"type": {"field_prompt": "prompt", "prompt_format": "{prompt}"}},
    ],
)
def test_text_that_is_used_as_it_stands(tmp_path, entry):
    example = first_row(tmp_path, entry, {"prompt": "Add", **PAIR})
    assert (example.prompt, example.completions) == ("Add", ["4", "5"])


def test_fields_of_ones_own(tmp_path):
    fields = {"field_prompt": "ask", "field_chosen": "good", "field_rejected": "bad"}
    row = {"ask": "Add", "good": "4", "bad": "5", "prompt": "not read"}
    example = first_row(tmp_path, {"type": fields}, row)
    assert (example.prompt, example.completions) == ("Add", ["4", "5"])


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        ({"type": "chatml.argilla"}, {"instruction": "Add", "completion": "4", "label": True}),
        ({"type": "llama3.ultra"}, {"prompt": "Add", "completion": "4", "label": True}),
        ({"type": "chatml.intel"}, {"question": "Add", "completion": "4", "label": True}),
        ({"type": "chatml.argilla_chat"}, {"completion": [USER, answer("4")], "label": True}),
    ],
)
def test_thumbs_of_a_chat(tmp_path, entry, row):
    example = first_row(tmp_path, entry, row, rl="kto")
    assert (example.kind, example.prompt) == ("unpaired", [USER])
    assert [messages[0]["content"] for messages in example.completions] == ["4"]


def test_thumbs_with_fields_of_ones_own(tmp_path):
    fields = {"field_prompt": "ask", "field_completion": "said", "field_label": "liked"}
    row = {"ask": "Add", "said": "4", "liked": False}
    example = first_row(tmp_path, {"type": fields}, row, rl="kto")
    assert (example.kind, example.prompt, example.completions) == ("unpaired", "Add", ["4"])


def test_where_the_rows_are():
    entry = {"path": "json", "data_files": ["a.jsonl"], "ds_type": "json", "type": "passthrough"}
    assert converted(entry).options["datasets"] == [{"path": "json", "data_files": "a.jsonl"}]
    entry = {"path": "org/d", "name": "en", "split": "train[:10]"}
    assert converted(entry).options["datasets"] == [entry]


def test_a_template_of_the_type_is_told():
    (line,) = [
        line
        for line in converted({"path": "d", "type": "chatml.intel"}).lines
        if line.option == "datasets"
    ]
    assert line.outcome == "differs"
    assert "the chat template is the tokenizer's own" in line.note


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"path": "d", "type": "chatml"}, "the type chatml is not known"),
        ({"path": "d", "type": "zephyr.nectar"}, "rename: {question: instruction}"),
        ({"path": "d", "type": "chat_template.other"}, "chat_template.other is not known"),
        ({"path": "d", "type": {"prompt_format": "[INST] {prompt}"}}, "a chat template of its own"),
        ({"path": "d", "revision": "v2"}, "revision cannot be chosen"),
        ({"path": "d", "shards": 10}, "split: train"),
        ({"path": "d", "field_human": "x"}, "field_human has no counterpart"),
        ({"type": "passthrough"}, "needs a path"),
        (
            {"path": "d", "type": "chat_template", "roles": {"user": ["wizard"]}},
            "the user is called 'wizard'",
        ),
        (
            {"path": "d", "type": "chat_template", "message_property_mappings": {"role": "who"}},
            "keys who and content",
        ),
    ],
)
def test_what_cannot_be_expressed_says_why(entry, said):
    (line,) = converted(entry).lost
    assert line.keys == ("datasets",)
    assert said in line.note


@pytest.mark.parametrize(
    ("values", "ours"),
    [({"val_set_size": 0.1}, {"eval_fraction": 0.1}), ({"val_set_size": 7}, {"eval_rows": 7})],
)
def test_a_part_is_held_out(values, ours):
    assert ours.items() <= converted({"path": "d"}, **values).options.items()


def test_rows_to_evaluate_on_go_before_a_part():
    ours = converted({"path": "d"}, test_datasets=[{"path": "t"}], val_set_size=0.1).options
    assert ours["eval_datasets"] == [{"path": "t"}]
    assert "eval_fraction" not in ours
