"""What of an example's messages and tools is not in the text that a chat template made of them."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from prefopt.data.example import PreferenceExample
from prefopt.data.messages import Message
from prefopt.data.prefix import shared_length

__all__ = ["THINK", "LeftOut", "find_left_out", "is_held", "texts_of"]

# What stands around reasoning, as <think>, </think>, <seed:think>, [THINK], <|end_of_thought|>.
THINK = re.compile(r"[<◁]/?[\w:|]*(?:think|thought|reason)[\w|]*[>▷]|\[/?THINK\]", re.IGNORECASE)
REASON = "the reasoning"
REASONING = ("reasoning_content", "reasoning", "thinking")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
LOSS = "the chat template leaves out {}: change the template, or take this out of the rows"


class LeftOut(NamedTuple):
    """What a template left out.

    Attributes:
        lost: What answers, prompt and tools lack, each as a sentence.
        history: Reasoning of earlier answers, which many templates leave out by design, at
            inference too; None if none was.
    """

    lost: list[str]
    history: str | None


def find_left_out(example: PreferenceExample, prompt: str, texts: Sequence[str]) -> LeftOut:
    """Return what of an example of messages is not in its rendered texts.

    White space at the ends does not count, nor how a text is escaped.

    Args:
        example: Prompt and completions as messages.
        prompt: The text of the prompt, with what the template puts before an answer.
        texts: The text of the prompt with each completion.
    """
    lost = []
    for messages, text in zip(example.completions, texts, strict=True):
        start = shared_length(prompt, text)
        missing = [what for message in messages for what, _ in _missing(message, text, start)]
        lost += [f"{what} of an answer" for what in missing]
    searched = prompt if texts[0].startswith(prompt) else texts[0]
    history = None
    for message in example.prompt:
        for what, words in _missing(message, searched, 0):
            if what == REASON and message["role"] == "assistant":
                history = history or words
            else:
                lost.append(f"{what} of a message of the prompt, whose role is {message['role']!r}")
    if any(not _is_listed(tool, example, texts[0]) for tool in example.tools or []):
        lost.append("tools")
    return LeftOut([LOSS.format(what) for what in lost], history)


def texts_of(content: Any) -> list[str]:
    """Return the texts of a message's content: text, parts with text, or None."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or [] if isinstance(part.get("text"), str)]


def is_held(wanted: str, text: str, start: int = 0) -> bool:
    r"""Whether a text holds another one that ends beyond ``start``, be it escaped or spaced anew.

    Examples:
        >>> is_held(" one\n two ", "say: one two.")
        True
        >>> is_held("say", "say: one two.", start=4)
        False
        >>> is_held('a "b" é', r"{'x': 'a \"b\" \u00e9'}")
        True
    """
    wanted = wanted.strip()
    first = max(0, start - len(wanted) + 1)  # its start may be given with the prompt, as <think>
    if not wanted or text.find(wanted, first) >= 0:
        return True
    core = _letters if _letters(wanted) else _without_spaces
    part, sought = text[first:], core(wanted)
    once = _unescape(part)
    return any(sought in core(form) for form in (part, once, _unescape(once), html.unescape(part)))


def _missing(message: Message, text: str, start: int) -> Iterator[tuple[str, str]]:
    """Yield what of a message is not in the text, and its words."""
    held = partial(is_held, text=text, start=start)
    thoughts = [message[key] for key in REASONING if isinstance(message.get(key), str)]
    for content in texts_of(message.get("content")):
        if held(content):
            continue
        tags = list(THINK.finditer(content))
        end = tags[-1].end() if tags else 0
        thoughts += THINK.split(content[:end])
        if not held(content[end:]):
            yield "the text", content[end:]
    yield from ((REASON, thought) for thought in thoughts if not held(thought))
    for call in message.get("tool_calls") or []:
        for forms in _words_of_call(call):
            if not any(map(held, forms)):
                yield "a tool call", forms[0]


def _words_of_call(call: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Yield name and arguments of a tool call, each as the ways in which it may be written."""
    function = call.get("function") or call
    yield [str(function.get("name") or "")]
    yield from _leaves(function.get("arguments"))


def _leaves(value: Any) -> Iterator[Sequence[str]]:
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield [value]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield [str(value), f"{value:g}"]


def _is_listed(tool: Any, example: PreferenceExample, text: str) -> bool:
    """Whether a tool is named in the text, not only by what is said there."""
    schema = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    name = schema.get("name")
    if not isinstance(name, str) or not name:
        return all(is_held(forms[0], text) for forms in _leaves(tool))
    said = [
        words
        for message in (*example.prompt, *example.completions[0])
        if message["role"] != "system"
        for words in (
            *texts_of(message.get("content")),
            *(str(call.get("function") or call) for call in message.get("tool_calls") or []),
        )
    ]
    times = sum(words.count(name) for words in said)
    if not times:
        return name in text
    description = schema.get("description") or ""
    return text.count(name) > times or (bool(description) and is_held(description, text))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _unescape(text: str) -> str:
    """Return what a JSON or Python literal stands for."""
    plain = ESCAPE.sub(_unescaped, text)
    # JSON in ASCII writes an emoji as two halves.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    return " " if code in "nrtbf" else code
