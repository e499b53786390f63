"""Prompts of rows with and without answers, and how they are shown."""

import pytest

from prefopt.data import DataError, read_example
from prefopt.evaluation.prompts import as_example, prompt_text, read_prompts

USER = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = {"role": "assistant", "content": "Four."}
OTHER = {"role": "assistant", "content": "Five."}


@pytest.mark.parametrize(
    ("row", "form", "prompt"),
    [
        ({"prompt": "2 + 2 ="}, "text", "2 + 2 ="),
        ({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "text", "2 + 2 ="),
        ({"prompt": "2 + 2 =", "completion": " 4"}, "text", "2 + 2 ="),
        ({"prompt": [USER]}, "messages", [USER]),
        ({"prompt": [USER], "completion": None}, "messages", [USER]),
        ({"messages": [USER]}, "messages", [USER]),
        ({"messages": [USER, ANSWER]}, "messages", [USER]),
        ({"messages": [USER, ANSWER, USER]}, "messages", [USER, ANSWER, USER]),
        ({"conversations": [{"from": "human", "value": "What is 2 + 2?"}]}, "messages", [USER]),
        ({"instruction": "What is 2 + 2?"}, "messages", [USER]),
        ({"instruction": "What is 2 + 2?", "output": "Four."}, "messages", [USER]),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "messages", [USER]),
        ({"prompt_ids": [3, 4], "chosen_ids": [5], "rejected_ids": [6]}, "ids", [3, 4]),
    ],
)
def test_the_prompt_of_a_row(row, form, prompt):
    (example,) = read_prompts([row])
    assert (example.form, example.prompt, example.completions) == (form, prompt, [])


def test_it_is_read_as_training_reads_it():
    hh = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
    (example,) = read_prompts([hh])
    assert example.prompt == read_example(hh, 0).prompt == "\n\nHuman: Hi\n\nAssistant:"


def test_each_prompt_comes_once_in_its_order():
    rows = [{"prompt": text} for text in ("b", "a", "b", "c", "a")]
    assert [example.prompt for example in read_prompts(rows)] == ["b", "a", "c"]
    assert [example.prompt for example in read_prompts(rows, most=2)] == ["b", "a"]
    assert len(read_prompts([*rows, {"wrong": 1}], most=3)) == 3  # no further row is read
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    rows = [{"prompt": [USER], "tools": [tool]} for tool in (*tools, tools[0])]
    assert [example.tools for example in read_prompts(rows)] == [[tools[0]], [tools[1]]]


def test_a_row_without_a_prompt_is_an_error():
    with pytest.raises(DataError, match="row 1"):
        read_prompts([{"prompt": "a"}, {"answer": "b"}])


def test_how_prompts_are_shown():
    assert prompt_text("2 + 2 =") == "2 + 2 ="
    assert prompt_text([USER, ANSWER]) == "user: What is 2 + 2?\nassistant: Four."
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert prompt_text(parts) == "user: Hi"
    assert prompt_text([3, 4]) == "[3, 4]"
    assert prompt_text(as_example("a")) == "a"
