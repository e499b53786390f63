"""Chat messages: role/content or ShareGPT's from/value, checked, and returned as role/content."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from prefopt.data.errors import DataError

__all__ = ["Message", "common_messages", "read_messages", "read_options", "read_tools"]

Message = dict[str, Any]

# ShareGPT's speakers and the roles that chat templates know.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

# Arguments of `apply_chat_template` that no row may set.
_SET_HERE = {
    "conversation",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
}


def read_messages(value: Any, row: int, column: str) -> list[Message]:
    """Return messages with ``role`` and ``content``, as chat templates take them.

    One message counts as a list of one. Keys that are null are left out: Arrow adds the keys that
    other messages have, with null.

    Raises:
        DataError: If it holds no messages, or one of them lacks its role or content.

    Examples:
        >>> read_messages([{"from": "human", "value": "Hi"}], row=0, column="conversations")
        [{'role': 'user', 'content': 'Hi'}]
    """
    wrong = partial(DataError, row=row, column=column)
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple):
        raise wrong(f"needs text or a list of messages, got {type(value).__name__}")
    if not turns:
        raise wrong("holds no messages; it needs at least one")
    return [_read_message(turn, place, wrong) for place, turn in enumerate(turns)]


def _read_message(turn: Any, place: int, wrong: Callable[[str], DataError]) -> Message:
    if not isinstance(turn, Mapping):
        raise wrong(
            f"message {place} is a {type(turn).__name__}; a message has 'role' and 'content' "
            "(or 'from' and 'value')"
        )
    # Keys of the other style are null where Arrow merged both.
    if turn.get("role") is None and turn.get("from") is not None:
        speaker = turn["from"]
        if speaker not in ROLES:
            raise wrong(
                f"message {place} is from {speaker!r}; known speakers are {', '.join(ROLES)}"
            )
        message: Message = {"role": ROLES[speaker], "content": turn.get("value")}
    else:
        message = {
            key: value if key == "content" else without_nulls(value)
            for key, value in turn.items()
            if (value is not None and key not in ("from", "value")) or key == "content"
        }
    if not isinstance(message.get("role"), str):
        raise wrong(
            f"message {place} has no role: its keys are {sorted(turn)}, it needs 'role' and "
            "'content' (or 'from' and 'value')"
        )
    _check_content(message, place, wrong)
    return message


def _check_content(message: Message, place: int, wrong: Callable[[str], DataError]) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return
    parts = content if isinstance(content, list) else []
    if parts and all(
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        for part in parts
    ):
        message["content"] = [without_nulls(part) for part in parts]
        return
    found = "null" if content is None else type(content).__name__
    raise wrong(
        f"message {place} has content of type {found}; it needs text (images and sound are not "
        "supported)"
    )


def without_nulls(value: Any) -> Any:
    """Return the value without the dictionary keys that are None, at any depth.

    >>> without_nulls({"a": None, "b": [{"c": None, "d": 1}]})
    {'b': [{'d': 1}]}
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def common_messages(conversations: Sequence[Sequence[Message]]) -> int:
    """Return how many leading messages all conversations share, leaving each its last one."""
    longest = min(map(len, conversations)) - 1
    for place in range(longest):
        if any(other[place] != conversations[0][place] for other in conversations[1:]):
            return place
    return longest


def read_tools(value: Any, row: int) -> list[Any] | None:
    """Return the tools of a row: a list of schemas, or JSON text of one; None for none."""
    tools = _read_json(value, row, "tools")
    if tools is None or isinstance(tools, list):
        return None if tools is None else [without_nulls(tool) for tool in tools]
    raise DataError(
        f"needs a list of tool schemas or JSON text of one, got {type(tools).__name__}",
        row,
        "tools",
    )


def read_options(value: Any, row: int) -> dict[str, Any]:
    """Return the chat template's keyword arguments of a row: a dictionary, or JSON text of one."""
    options = _read_json(value, row, "chat_template_kwargs")
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise DataError(
            f"needs a dictionary or JSON text of one, got {type(options).__name__}",
            row,
            "chat_template_kwargs",
        )
    if taken := sorted(_SET_HERE & {*options}):
        raise DataError(f"{taken[0]!r} is set here; leave it out", row, "chat_template_kwargs")
    return {name: option for name, option in options.items() if option is not None}


def _read_json(value: Any, row: int, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DataError(f"is no valid JSON ({error})", row, column) from None
