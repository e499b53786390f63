"""Messages of both styles become role and content; tools and template arguments are read."""

import pytest

from prefopt.data import DataError
from prefopt.data.messages import (
    common_messages,
    read_messages,
    read_options,
    read_tools,
    without_nulls,
)

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def read(value):
    return read_messages(value, 3, "prompt")


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("gpt", "assistant"), ("system", "system"), ("observation", "tool")],
)
def test_speakers_of_sharegpt_become_roles(speaker, role):
    assert read([{"from": speaker, "value": "x"}]) == [{"role": role, "content": "x"}]


def test_one_message_is_a_list_of_one():
    assert read(USER) == [USER]


def test_lists_of_roles_and_contents_are_messages():
    assert read({"role": ["user", "assistant"], "content": ["Hi", "Hello"], "name": None}) == [
        USER,
        ANSWER,
    ]
    assert read({"from": ["human"], "value": ["Hi"]}) == [USER]
    with pytest.raises(DataError, match="message 0 has no role"):
        read({"role": ["user", "assistant"], "content": ["Hi"]})


def test_keys_that_arrow_filled_with_nulls_are_left_out():
    merged = {**USER, "from": None, "value": None, "name": None, "meta": {"a": 1, "b": None}}
    assert read([merged]) == [{**USER, "meta": {"a": 1}}]
    turn = {"from": "gpt", "value": "Hello", "role": None, "content": None}
    assert read([turn]) == [ANSWER]


def test_a_call_of_a_tool_needs_no_content_and_parts_of_text_are_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": 1, "args": None}]}
    assert read([call]) == [{**call, "tool_calls": [{"id": 1}]}]
    parts = [{"type": "text", "text": "Hi", "image": None}]
    assert read([{"role": "user", "content": parts}])[0]["content"] == [
        {"type": "text", "text": "Hi"}
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Hi", "needs text or a list of messages, got str"),
        ([], "holds no messages"),
        (["Hi"], "message 0 is a str"),
        ([USER, {"content": "x"}], "message 1 has no role: its keys are"),
        (
            [{"from": "robot", "value": "x"}],
            "message 0 is from 'robot', which is no known role; known are system",
        ),
        ([{"role": "user", "content": None}], "message 0 has content of type null"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "of type 'image'; images are not supported yet",
        ),
    ],
)
def test_what_is_no_message_is_an_error_that_names_its_place(value, message):
    with pytest.raises(DataError, match=f"row 3, column 'prompt': .*{message}"):
        read(value)


LOOKED_UP = {"name": "look_up", "arguments": {"city": "Oslo", "days": 2}}
AS_TEXT = '{"name": "look_up", "arguments": {"city": "Oslo", "days": 2}}'
ARGUMENTS = '{"city": "Oslo", "days": 2}'


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": AS_TEXT},
        {"from": "function_call", "value": f"[{AS_TEXT}]"},
        {"role": "assistant", "content": "", "function_call": LOOKED_UP},
        {
            "role": "assistant",
            "content": "",
            "function_call": {"name": "look_up", "arguments": ARGUMENTS},
        },
    ],
)
def test_calls_of_tools_that_other_programs_write_are_those_of_chat_templates(turn):
    call = {"type": "function", "function": LOOKED_UP}
    assert read([turn]) == [{"role": "assistant", "content": "", "tool_calls": [call]}]


@pytest.mark.parametrize("arguments", [ARGUMENTS, LOOKED_UP["arguments"]])
def test_arguments_in_json_text_are_dictionaries_by_the_time_a_template_sees_them(arguments):
    function = {"name": "look_up", "arguments": arguments}
    for call in ({"id": "1", "type": "function", "function": function}, function):
        found = read([{**ANSWER, "tool_calls": [call]}])[0]["tool_calls"][0]
        assert found.get("function", found)["arguments"] == LOOKED_UP["arguments"]
    nothing = read([{**ANSWER, "tool_calls": [{"function": {**function, "arguments": ""}}]}])
    assert nothing[0]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"from": "function_call", "value": "look_up(Oslo)"}, "that is no valid JSON"),
        ({"from": "function_call", "value": '{"arguments": {}}'}, "has no name; it needs 'name'"),
        (
            {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": '{"city": '}}]},
            "that is no valid JSON",
        ),
        (
            {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "has arguments that are no dictionary",
        ),
        ({**ANSWER, "tool_calls": ["f"]}, "is no dictionary"),
    ],
)
def test_a_call_that_cannot_be_read_is_an_error(turn, message):
    with pytest.raises(DataError, match=f"row 3, column 'prompt': message 1 .*{message}"):
        read([USER, turn])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "video"}]},
        {"role": "user", "content": "What is this?", "images": ["a.png"]},
    ],
)
def test_images_sound_and_video_in_messages_are_refused(message):
    with pytest.raises(DataError, match="images are not supported yet"):
        read([message])
    message = {key: value for key, value in message.items() if key != "images"}
    empty = {**message, "content": "What is this?", "images": []}
    assert read([empty])[0]["content"] == "What is this?"


def test_nulls_are_removed_at_any_depth_of_dictionaries_and_kept_in_lists():
    assert without_nulls([None, {"a": [{"b": None}]}]) == [None, {"a": [{}]}]


def test_shared_messages_leave_each_conversation_its_last():
    assert common_messages([[USER, ANSWER], [USER, {**ANSWER, "content": "Bye"}]]) == 1
    assert common_messages([[USER, ANSWER], [USER, ANSWER]]) == 1
    assert common_messages([[USER], [USER, ANSWER]]) == 0
    assert common_messages([[USER, ANSWER], [ANSWER, USER]]) == 0


def test_tools_and_template_arguments_may_be_json_text():
    assert read_tools('[{"name": "f"}]', 0) == read_tools([{"name": "f", "x": None}], 0)
    assert read_options('{"a": 1, "b": null}', 0) == read_options({"a": 1}, 0) == {"a": 1}
    assert read_tools(None, 0) is None
    assert read_options(None, 0) == {}


@pytest.mark.parametrize(
    ("read_value", "value", "message"),
    [
        (read_tools, "{", "column 'tools': is no valid JSON"),
        (read_tools, '{"a": 1}', "needs a list of tool schemas or JSON text of one, got dict"),
        (read_options, "[1]", "needs a dictionary or JSON text of one, got list"),
    ],
)
def test_wrong_tools_and_template_arguments_are_errors(read_value, value, message):
    with pytest.raises(DataError, match=message):
        read_value(value, 0)


@pytest.mark.parametrize("content", [False, 5, "x", ["x", "y"]])
def test_a_list_of_roles_beside_something_else_is_no_list_of_messages(content):
    with pytest.raises(DataError, match="message 0"):
        read_messages({"role": ["user"], "content": content}, 0, "prompt")
