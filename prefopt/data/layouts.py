"""Layouts of other programs, brought to the columns that ``prefopt.data.formats`` reads.

Alpaca's ``instruction`` and ``input``, joined by a line break as LLaMA-Factory does, are what the
user says; its ``history`` holds earlier turns as pairs of user and assistant. UltraInteract's
``trajectory`` is the messages of the prompt. Messages may stand in a row as text, JSON or Python,
and inside an object with their tools.
"""

from collections.abc import Mapping
from typing import Any

from prefopt.data.example import Cells
from prefopt.data.messages import Message, read_messages
from prefopt.data.written import is_message, read_list, read_written

__all__ = ["ALPACA_COLUMNS", "PROMPT_COLUMNS", "prompt_column", "read_prompt", "unwrap"]

ALPACA_COLUMNS = ("instruction", "input", "history", "output")
# Columns that hold the messages of the prompt where there is no column `prompt`.
PROMPT_COLUMNS = ("messages", "conversations", "trajectory", "instruction")
_MESSAGES = ("prompt", "chosen", "rejected", "completion", "output", *PROMPT_COLUMNS, "history")
_LISTS = ("completions", "responses", "ranks", "scores")


def unwrap(row: Cells) -> Cells:
    """Return the row with messages and lists in place of the text or the object that holds them.

    Raises:
        DataError: If text begins like messages and can't be read, or an object holds more than
            messages and tools.
    """
    values = dict(row.values)
    for column in (name for name in _LISTS if name in row):
        if isinstance(values[column], str):
            values[column] = read_list(values[column])
        if column in ("completions", "responses") and isinstance(values[column], list):
            values[column] = [_unwrap(row, column, item, values) for item in values[column]]
    for column in (name for name in _MESSAGES if name in row):
        values[column] = _unwrap(row, column, values[column], values)
    return Cells(values, row.columns, row.number)


def _unwrap(row: Cells, column: str, value: Any, values: dict[str, Any]) -> Any:
    """Return the messages of one cell; its tools, if it has any, become those of the row."""
    if isinstance(value, str):
        try:
            value = read_written(value)
        except ValueError as error:
            raise row.wrong(column, str(error)) from None
    if not isinstance(value, Mapping) or is_message(value):
        return value
    inner = next((key for key in ("messages", "conversations") if value.get(key)), None)
    if inner is None:
        return value
    for key, item in value.items():
        if key == "tools" and item:
            values["tools"] = values.get("tools") or item
            if values["tools"] != item:
                raise row.wrong(column, "holds other tools than the rest of its row")
        elif key != inner and item and not isinstance(item, bool | int | float):
            raise row.wrong(column, f"holds {key!r} beside its {inner}, which is not read there")
    return value[inner]


def prompt_column(row: Cells, taken: list[str]) -> str | None:
    """Return the column with the messages of the prompt, None if there is none.

    ``taken`` are the columns of the completions.
    """
    return next((name for name in PROMPT_COLUMNS if name in row and name not in taken), None)


def read_prompt(row: Cells, column: str) -> list[Message]:
    """Return the messages of the prompt, from a column of ``PROMPT_COLUMNS``."""
    value = row.get(column)
    if column != "instruction" or not isinstance(value, str):
        return read_messages(value, row.number, column)
    parts = [value]
    if not _is_blank(row.values.get("input")):
        parts.append(row.get("input"))
        if not isinstance(parts[1], str):
            raise row.wrong("input", f"needs text, got {type(parts[1]).__name__}")
    said = "\n".join(part for part in parts if part.strip())
    if not said:
        raise row.wrong("instruction", "is empty; it needs what the user says")
    return [*_read_history(row), {"role": "user", "content": said}]


def _read_history(row: Cells) -> list[Message]:
    """Return the earlier turns: pairs of what the user and the assistant said, or messages."""
    if _is_blank(row.values.get("history")):
        return []
    history = row.get("history")
    if isinstance(history, str):
        history = read_list(history)
    if isinstance(history, list) and all(map(is_message, history)):
        return read_messages(history, row.number, "history")
    turns: list[Message] = []
    for place, pair in enumerate(history if isinstance(history, list) else [history]):
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise row.wrong(
                "history",
                f"needs pairs of texts, what the user said and the answer; pair {place} is "
                f"{pair!r:.80}",
            )
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _is_blank(value: Any) -> bool:
    """Whether a cell is empty; a number that is not a number is an empty cell of a CSV file."""
    return (
        value in (None, [], {}) or value != value or (isinstance(value, str) and not value.strip())
    )
