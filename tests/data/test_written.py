"""Text that spells out messages or lists, and text that only looks so."""

import json

import pytest

from prefopt.data.written import is_message, parse_text, read_list, read_written

TALK = [
    {"role": "user", "content": 'Where\'s "Oslo"?\n\\d'},
    {"role": "assistant", "content": "In Norway."},
]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize("messages", [TALK, SHAREGPT, TALK[0], {"messages": TALK, "tools": []}])
@pytest.mark.parametrize(
    "write", [json.dumps, repr, lambda value: "\n" + json.dumps(value, indent=2)]
)
def test_json_and_python_are_read(messages, write):
    assert read_written(write(messages)) == messages


def test_text_that_was_written_twice_is_read_twice():
    assert read_written(json.dumps(json.dumps(TALK))) == TALK
    for text in ('"[a", "b"', '"[1]" is a quote', '"{"'):
        assert read_written(text) == text


def test_a_list_with_unknown_roles_is_messages_too_so_that_they_are_refused_by_name():
    assert read_written('[{"role": "wizard", "content": "x"}]') == [
        {"role": "wizard", "content": "x"}
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hi",
        "[1] A footnote",
        "[1, 2, 3]",
        '["a", "b"]',
        '{"name": "Ann", "role": "admin"}',
        '{"role": "admin", "content": "all"}',
        '{"users": [{"role": "user"}]}',
        "{not closed",
        'Use [{"role": "user", "content": "x"}]',
        "[]",
    ],
)
def test_other_text_stays_text(text):
    assert read_written(text) == text


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TALK)[:-20],
        repr(TALK)[:40],
        "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",
        "array([{'from': 'human', 'value': 'a'}], dtype=object)",
        '{"messages": [{"role": "user", "content": "a',
    ],
)
def test_messages_that_can_not_be_read_are_an_error(text):
    with pytest.raises(ValueError, match=r"begins like messages.*save messages with json\.dumps"):
        read_written(text)


def test_lists_are_read_and_anything_else_stays():
    assert read_list("[1, 0]") == [1, 0]
    assert read_list("['a', \"b\"]") == ["a", "b"]
    assert read_list("[a") == "[a"
    assert read_list("a, b") == "a, b"


def test_the_error_of_what_is_neither_json_nor_python_is_that_of_json():
    with pytest.raises(ValueError, match="Expecting value"):
        parse_text("f(x)")
    with pytest.raises(ValueError, match=r"recursion|Expecting"):
        parse_text("[" * 100_000)


def test_a_message_has_a_speaker_and_what_is_said():
    assert is_message(TALK[0])
    assert is_message(SHAREGPT[0])
    assert is_message({"role": "assistant", "tool_calls": [], "from": None})
    assert not is_message({"role": "user"})
    assert not is_message({"from": "Oslo", "to": "Bergen"})
    assert not is_message("user")
