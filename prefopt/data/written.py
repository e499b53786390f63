"""Messages that stand in a row as text, JSON or Python's own notation, as CSV files have them."""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from prefopt.data.roles import known_role

__all__ = ["is_message", "parse_text", "read_list", "read_written"]

# Text that begins like this is meant as messages, though it may be cut off or damaged.
_BEGINNING = re.compile(
    r"""\s*(array\()?\s*(\[\s*)*\{\s*["'](role|from|content|value|name|id|messages|conversations|tools)["']\s*:"""
)
_SPEAKER = re.compile(r"""["'](?:role|from)["']\s*:\s*["']([\w ]+)["']""")


def read_written(text: str) -> Any:
    """Return the messages that a text spells out; any other text as it is.

    Raises:
        ValueError: If the text begins like messages, but can't be read.

    Examples:
        >>> read_written("[{'role': 'user', 'content': 'Hi'}]")
        [{'role': 'user', 'content': 'Hi'}]
        >>> read_written('["a", "b"] is a list')
        '["a", "b"] is a list'
    """
    if text.startswith(('"[', '"{')):  # written twice
        once = read_list(f"[{text}]")
        twice = read_written(once[0]) if isinstance(once, list) and len(once) == 1 else text
        return text if isinstance(twice, str) else twice
    if not text.lstrip().startswith(("[", "{", "array(")):
        return text
    speaker = _SPEAKER.search(text)
    if speaker is None:
        return text
    is_known = known_role(speaker[1]) is not None  # other data may have roles too
    try:
        value = parse_text(text)
    except ValueError as error:
        if is_known and _BEGINNING.match(text):
            raise ValueError(
                "begins like messages, but is neither valid JSON nor a Python list (is it cut off, "
                f"or written by numpy?): {error}; save messages with json.dumps"
            ) from None
        return text
    is_list = isinstance(value, list)
    return value if _are_messages(value) and (is_known or is_list) else text


def read_list(text: str) -> Any:
    """Return the list that a text spells out in JSON or Python; any other text as it is.

    >>> read_list("['a', 'b']")
    ['a', 'b']
    """
    if text.lstrip().startswith("["):
        try:
            return parse_text(text)
        except ValueError:
            return text
    return text


def is_message(value: Any) -> bool:
    """Whether a value has the two keys of a message, in either style."""
    if not isinstance(value, Mapping):
        return False
    if value.get("role") is not None:
        return any(key in value for key in ("content", "value", "tool_calls"))
    return value.get("from") is not None and "value" in value


def _are_messages(value: Any) -> bool:
    if isinstance(value, Mapping):
        inner = value.get("messages") or value.get("conversations")
        return is_message(value) or (inner is not None and _are_messages(inner))
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def parse_text(text: str) -> Any:
    """Return the value that a text spells out, in JSON or else in Python's notation.

    Raises:
        ValueError: If it is neither; the error is that of JSON.
    """
    try:
        return json.loads(text, strict=False)  # line breaks inside strings do no harm
    except (ValueError, RecursionError) as error:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # a backslash that escapes nothing
                return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(str(error)) from None
