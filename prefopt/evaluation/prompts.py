"""What a model is asked: plain text, a conversation, or token ids; read from rows, and shown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefopt.data import PreferenceExample, read_example
from prefopt.data.left_out import texts_of
from prefopt.data.messages import read_messages
from prefopt.data.roles import known_role

__all__ = ["Prompt", "as_example", "conversation_text", "prompt_text", "read_prompts"]

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int] | PreferenceExample
"""Plain text, messages, token ids, or a row of data with its tools and template arguments."""

# Rows with one of these are preferences, and read as training reads them.
_PREFERENCES = ("chosen", "rejected", "completions", "responses", "prompt_ids")
_ANSWER = [{"role": "assistant", "content": "answer"}]


def as_example(prompt: Prompt, number: int = 0) -> PreferenceExample:
    """Return a prompt as data holds it, without completions.

    Args:
        prompt: In any of the forms.
        number: Its number, for errors.

    Raises:
        DataError: If it is none of the forms.

    Examples:
        >>> as_example("Hello").form, as_example([3, 5]).form
        ('text', 'ids')
    """
    if isinstance(prompt, PreferenceExample):
        return prompt
    if isinstance(prompt, str):
        return PreferenceExample("unpaired", "text", prompt, [])
    if isinstance(prompt, Sequence) and prompt and all(type(item) is int for item in prompt):
        return PreferenceExample("unpaired", "ids", list(prompt), [])
    messages = read_messages(prompt, number, "prompt")
    return PreferenceExample("unpaired", "messages", messages, [])


def read_prompts(
    rows: Iterable[Mapping[str, Any]], most: int | None = None
) -> list[PreferenceExample]:
    """Return the prompts of rows, as training reads them, each once and in their order.

    Args:
        rows: Preferences in any format, or prompts alone (``prompt``, ``messages``, ...).
        most: Most prompts, the first; rows behind them are not read. None for all.

    Raises:
        DataError: If a row is none of the formats.

    Examples:
        >>> rows = [{"prompt": "2 + 2 ="}, {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}]
        >>> [example.prompt for example in read_prompts(rows)]
        ['2 + 2 =']
    """
    found: dict[str, PreferenceExample] = {}
    for number, row in enumerate(rows):
        if most is not None and len(found) >= most:
            break
        example = replace(read_example(_answered(row), number), completions=[])
        found.setdefault(repr((example.prompt, example.tools, example.options)), example)
    return list(found.values())


def _answered(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that reads as a preference: with an answer and a label, where it has none."""
    given = {name: value for name, value in row.items() if value is not None}
    if any(name in given for name in _PREFERENCES):
        return dict(row)
    turns = given.get("messages") or given.get("conversations")
    has_answer = "completion" in given or "output" in given
    if "prompt" not in given and isinstance(turns, list) and turns:
        speaker = str(turns[-1].get("role") or turns[-1].get("from"))
        has_answer = has_answer or known_role(speaker) == "assistant"
    if not has_answer:
        given["completion"] = "answer" if isinstance(given.get("prompt"), str) else _ANSWER
    return {"label": True, **given}


def prompt_text(prompt: Prompt, tokenizer: Any = None) -> str:
    """Return a prompt as people read it: plain text as it is, of messages who says what.

    Args:
        prompt: In any of the forms.
        tokenizer: Writes out token ids; None to leave them as numbers.

    Examples:
        >>> print(prompt_text([{"role": "user", "content": "Hi"}]))
        user: Hi
    """
    example = as_example(prompt)
    if example.form == "text":
        return str(example.prompt)
    if example.form == "ids":
        return str(example.prompt if tokenizer is None else tokenizer.decode(example.prompt))
    return conversation_text(example.prompt)


def conversation_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return messages as lines of text, each with its role."""
    return "\n".join(
        f"{message['role']}: {' '.join(texts_of(message.get('content')))}" for message in messages
    )
