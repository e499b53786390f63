"""Messages made into text by the chat template, in whichever form of content it takes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from prefopt.data.errors import DataError
from prefopt.data.example import PreferenceExample
from prefopt.data.left_out import find_left_out, texts_of
from prefopt.data.messages import Message

__all__ = ["Rendered", "Tokenizer", "render_messages"]

NEITHER = "the chat template takes content neither as text nor as parts"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    eos_token: str | None
    chat_template: Any

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Return the ids of each text under the key ``input_ids``."""

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any:
        """Return the text of the messages."""


class Rendered(NamedTuple):
    """The texts of an example.

    Attributes:
        prompt: The prompt; of messages with what the template puts before an answer.
        texts: The prompt with each completion.
        lost: What of the messages is not in the texts; None if all is.
        history: Reasoning of earlier answers that is not in the texts; None if all is.
    """

    prompt: str
    texts: list[str]
    lost: str | None = None
    history: str | None = None


def render_messages(example: PreferenceExample, number: int, tokenizer: Tokenizer) -> Rendered:
    """Return the texts of an example of messages.

    Templates take the content of a message as text or as parts (``{"type": "text", ...}``), and
    arguments of tools as objects or as JSON text. Where one raises, or leaves something out, the
    other forms are tried.

    Raises:
        DataError: If there is no chat template, or it refuses the row in every form.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "holds messages, but the tokenizer has no chat template: set tokenizer.chat_template, "
            "or make prompt and completions plain text",
            number,
        )
    refusal: Exception | None = None
    tried: list[tuple[bool, int, Rendered]] = []
    for form in _forms(example):
        try:
            prompt, *texts = _apply(form, tokenizer)
        except Exception as error:  # a template may raise anything
            refusal = refusal or error
            continue
        lost, history = find_left_out(example, prompt, texts)
        as_data = _prints_data(form, texts)
        lost = [NEITHER] if as_data else lost
        rendered = Rendered(prompt, texts, lost[0] if lost else None, history)
        if not lost:
            return rendered
        tried.append((as_data, len(lost), rendered))
    if tried:
        return min(tried, key=itemgetter(0, 1))[2]
    raise DataError(
        f"the chat template refuses the messages: {type(refusal).__name__}: {refusal}", number
    ) from refusal


def _apply(example: PreferenceExample, tokenizer: Tokenizer) -> list[str]:
    options = {"tools": example.tools, **example.options, "tokenize": False}
    conversations = [example.prompt + messages for messages in example.completions]
    prompt = tokenizer.apply_chat_template(
        example.prompt, **{**options, "add_generation_prompt": True}
    )
    return [prompt, *(tokenizer.apply_chat_template(c, **options) for c in conversations)]


def _forms(example: PreferenceExample) -> Iterator[PreferenceExample]:
    """Yield the example as it is, then with its content as text, and as parts, of some or all."""
    yield example
    tried = [example]
    for roles_in_parts, json_arguments in (
        ((False, False), False),
        ((True, True), False),
        ((True, False), False),
        ((False, True), False),
        ((False, False), True),
    ):
        prompt, *completions = (
            [
                _in_form(turn, roles_in_parts[turn["role"] == "assistant"], json_arguments)
                for turn in turns
            ]
            for turns in (example.prompt, *example.completions)
        )
        form = replace(example, prompt=prompt, completions=completions)
        if form not in tried:
            tried.append(form)
            yield form


def _in_form(message: Message, in_parts: bool, json_arguments: bool) -> Message:
    texts = texts_of(message.get("content"))
    content = [{"type": "text", "text": text} for text in texts] if in_parts else "\n".join(texts)
    message = {**message, "content": content}
    if json_arguments and message.get("tool_calls"):
        message["tool_calls"] = [_with_json_arguments(call) for call in message["tool_calls"]]
    return message


def _with_json_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_json_arguments(call["function"])}
    if isinstance(call.get("arguments"), dict):
        return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return call


def _prints_data(example: PreferenceExample, texts: list[str]) -> bool:
    """Whether a part of a content stands in the texts as Python or JSON would print it."""
    return any(
        printed in text
        for messages, text in zip(example.completions, texts, strict=True)
        for message in (*example.prompt, *messages)
        if isinstance(message.get("content"), list)
        for part in message["content"]
        for printed in (str(part), json.dumps(part, ensure_ascii=False))
    )
