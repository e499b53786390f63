"""Chat messages: role/content or ShareGPT's from/value, checked, and returned as role/content."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from prefopt.data.errors import DataError
from prefopt.data.names import meaning_of
from prefopt.data.roles import CALLS, known_role, role_names
from prefopt.data.written import parse_text

__all__ = [
    "NO_MEDIA",
    "Message",
    "common_messages",
    "read_messages",
    "read_options",
    "read_tools",
    "same_message",
    "squeezed",
]

Message = dict[str, Any]

NO_MEDIA = "images are not supported yet, nor are audio and video"

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
    turns = _turns_of(value) if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple):
        raise wrong(f"needs text or a list of messages, got {type(value).__name__}")
    if not turns:
        raise wrong("holds no messages; it needs at least one")
    return [_read_message(turn, place, wrong) for place, turn in enumerate(turns)]


def _turns_of(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the messages of a mapping: one, or several if each key has a list, as in old Arrow."""
    lists = {key: item for key, item in value.items() if item is not None}
    speakers = lists.get("role") or lists.get("from")
    if not isinstance(speakers, list) or not all(
        isinstance(item, list) and len(item) == len(speakers) for item in lists.values()
    ):
        return [value]
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]


def _read_message(turn: Any, place: int, wrong: Callable[[str], DataError]) -> Message:
    if not isinstance(turn, Mapping):
        raise wrong(
            f"message {place} is a {type(turn).__name__}; a message has 'role' and 'content' "
            "(or 'from' and 'value')"
        )
    # Keys of the other style are null where Arrow merged both.
    style = "role" if turn.get("role") is not None else "from"
    speaker = turn.get(style)
    if not isinstance(speaker, str):
        raise wrong(
            f"message {place} has no role: its keys are {sorted(turn)}, it needs 'role' and "
            "'content' (or 'from' and 'value')"
        )
    role = known_role(speaker)
    if role is None:
        raise wrong(
            f"message {place} is from {speaker!r}, which is no known role; known are {role_names()}"
        )
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    message: Message = {"role": role}
    if content is not None or "content" in turn or style == "from":
        message["content"] = content
    for key, value in turn.items():
        if value is not None and key not in ("role", "content", "from", "value"):
            message[key] = without_nulls(value)
    if speaker.strip().lower() in CALLS:
        message["function_call"] = message.pop("content", None)
    _check_media(message, place, wrong)
    if message.get("tool_calls") or message.get("function_call"):
        _read_calls(message, f"message {place} has a tool call that", wrong)
    _check_content(message, place, wrong)
    return message


def _read_calls(message: Message, where: str, wrong: Callable[[str], DataError]) -> None:
    """Bring calls of tools into the form of chat templates: in ``tool_calls``, arguments parsed."""
    if message.get("function_call"):  # ShareGPT's, or what OpenAI had before `tool_calls`
        given = _parse(message.pop("function_call"), where, wrong)
        functions = given if isinstance(given, list) else [given]
        if not all(isinstance(each, Mapping) and each.get("name") for each in functions):
            raise wrong(f"{where} has no name; it needs 'name' and 'arguments', got {given!r:.200}")
        message["tool_calls"] = [{"type": "function", "function": each} for each in functions]
        message["content"] = message.get("content") or ""
    calls = _parse(message["tool_calls"], where, wrong)
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise wrong(f"{where} is no dictionary: {calls!r:.200}")
    message["tool_calls"] = [_with_parsed_arguments(call, where, wrong) for call in calls]


def _with_parsed_arguments(
    call: Mapping[str, Any], where: str, wrong: Callable[[str], DataError]
) -> dict[str, Any]:
    """Return the call with arguments as a dictionary, where the row has them as JSON text."""
    if isinstance(call.get("function"), Mapping):
        function = _with_parsed_arguments(call["function"], where, wrong)
        return {**call, "function": function}
    if not isinstance(call.get("arguments"), str):
        return dict(call)
    arguments = _parse(call["arguments"].strip() or "{}", where, wrong)
    if not isinstance(arguments, Mapping):
        raise wrong(f"{where} has arguments that are no dictionary: {arguments!r:.200}")
    return {**call, "arguments": dict(arguments)}


def _parse(value: Any, where: str, wrong: Callable[[str], DataError]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise wrong(f"{where} is no valid JSON ({error}): {value!r:.200}") from None


def _check_media(message: Message, place: int, wrong: Callable[[str], DataError]) -> None:
    """Refuse a message with an image, whether in a part of its content or in a key of its own."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else []
    parts = [part for part in parts if isinstance(part, Mapping)]
    names = [name for part in parts for name in (part.get("type"), *without_nulls(part))]
    names += [key for key, value in message.items() if value not in ("", [], {}, None)]
    for name in names:
        if isinstance(name, str) and meaning_of(name).topic == "media":
            raise wrong(f"message {place} has content of type {name!r}; {NO_MEDIA}")


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
        f"message {place} has content of type {found}; it needs text, or parts of type 'text'"
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
        if not all(same_message(other[place], conversations[0][place]) for other in conversations):
            return place
    return longest


def same_message(first: Message, second: Message) -> bool:
    """Whether two messages are the same; white space counts in what the assistant says only."""
    if first == second:
        return True
    if first["role"] not in ("user", "system") or first.keys() != second.keys():
        return False
    one, other = ({**each, "content": squeezed(each["content"])} for each in (first, second))
    return one == other


def squeezed(content: Any) -> str:
    r"""Return the text of a message's content, with any white space as one blank.

    >>> squeezed("Name a\r\nfruit. "), squeezed([{"type": "text", "text": "Hi"}])
    ('Name a fruit.', 'Hi')
    """
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    return " ".join((content or "").split())


def read_tools(value: Any, row: int) -> list[Any] | None:
    """Return the tools of a row: a list of schemas, or JSON text of one; None for none."""
    tools = _read_json(value, row, "tools")
    if tools is None or isinstance(tools, list):
        given = [_read_json(tool, row, "tools") for tool in tools or []]
        return None if tools is None else [without_nulls(tool) for tool in given]
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
        return parse_text(value) if value.strip() else None
    except ValueError as error:
        raise DataError(f"is no valid JSON ({error})", row, column) from None
