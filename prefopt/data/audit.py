"""How training texts differ from what inference makes: how they begin and end, what is left out."""

import re
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from prefopt.data.example import PreferenceExample
from prefopt.data.left_out import REASONING, THINK, texts_of
from prefopt.data.messages import Message
from prefopt.data.prefix import shared_length
from prefopt.data.template import Rendered, Tokenizer
from prefopt.data.tokenize import Tokenized

__all__ = ["Finding", "TemplateFacts", "audit"]

BOS = "the text begins with BOS itself, so none is added"
EOS = "an answer ends itself, so no EOS is added; white space behind its end is dropped"
PROMPT = "at inference the prompt goes on otherwise than in training"
MERGED = "a token spans the end of the prompt; it belongs to the completion"
BEFORE = "the template puts text before the answer that its generation prompt lacks"
NO_END = "the completion has no token at which generation stops"
TWO_ENDS = "the completion ends with two tokens at which generation stops"
BEHIND = "what follows the end of the answer is trained on"
HISTORY = "the template leaves out the reasoning of earlier answers"
ADDED = "the template adds text of its own to the prompt"
PLAIN = "plain text has none of the chat template's tags; lists of messages would get them"
UNKNOWN = "the template does not read an argument of chat_template_kwargs"
DATE = "the template prints today's date, so tokens differ from day to day"
SHOWN = 80  # characters of an example

QUESTION, ANSWER, AGAIN = "prefoptquestion", "prefoptanswer", "prefoptagain"
PIECES = re.compile(r"(<[^<>]*>|\[[^\[\]]*\]|\s+)")  # tags and white space, words between them


class Finding(NamedTuple):
    """Something to know of a row: what it is, and how it looks there."""

    what: str
    example: str


class TemplateFacts(NamedTuple):
    """What a chat template prints in every conversation.

    Attributes:
        source: The template; empty if there is none.
        tags: The tags between two turns.
        added: Text that it adds where there is no system message; empty if none.
        dates: Today, in the formats in which it asks for it.
    """

    source: str = ""
    tags: tuple[str, ...] = ()
    added: str = ""
    dates: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TemplateFacts":
        """Return those of the tokenizer's chat template."""
        source = str(tokenizer.chat_template or "")
        before, between = _trial(tokenizer) if source else ([], [])
        added = before[: len(before) - shared_length(before[::-1], between[::-1])]
        is_more_than_tags = any(
            re.search(r"\w", piece) for piece in added if not PIECES.match(piece)
        )
        formats = re.findall(r"strftime_now\(\s*[\"']([^\"']+)", source)
        return cls(
            source,
            tags=tuple(piece for piece in between if PIECES.match(piece) and piece.strip()),
            added="".join(added) if is_more_than_tags else "",
            dates=tuple(datetime.now().strftime(form) for form in formats),
        )


def audit(
    example: PreferenceExample,
    tokenized: Tokenized,
    tokenizer: Any,
    facts: TemplateFacts,
    stops: Collection[int],
) -> list[Finding]:
    """Return how a row's texts differ from what inference makes; nothing for token ids.

    Args:
        example: The row.
        tokenized: Its token ids, not yet cut.
        tokenizer: That of the model.
        facts: What its chat template prints in every conversation.
        stops: Ids at which generation stops.
    """
    rendered = tokenized.rendered
    if rendered is None:
        return []
    parts = [_end(tokenized, stops, tokenizer)]
    if example.form == "text":
        parts.append(_plain_text(example, rendered, tokenizer, facts))
    else:
        parts.append(_beginning(example, rendered))
        parts.append(_prompt(example, rendered, facts))
    if tokenized.unused_ids and rendered.texts[0].startswith(rendered.prompt):
        parts.append(_merged(tokenized, tokenizer))
    first: dict[str, Finding] = {}
    for part in parts:
        for finding in part:
            first.setdefault(finding.what, finding)
    return list(first.values())


def _merged(tokenized: Tokenized, tokenizer: Any) -> Iterator[Finding]:
    decode = getattr(tokenizer, "decode", str)
    unused = tokenized.unused_ids
    other = next(ids for ids in tokenized.completion_ids if ids[:1] != unused[:1])
    yield Finding(
        MERGED, f"{_shown(decode(unused))} becomes {_shown(decode(other[: len(unused)]))}"
    )


def _plain_text(
    example: PreferenceExample, rendered: Rendered, tokenizer: Any, facts: TemplateFacts
) -> Iterator[Finding]:
    given = example.prompt + example.completions[0]
    if facts.tags and not any(tag in given for tag in facts.tags):
        yield Finding(PLAIN, _shown(facts.tags[-1]))
    bos = getattr(tokenizer, "bos_token", None)
    if bos and rendered.texts[0].startswith(bos):
        yield Finding(BOS, _shown(bos))
    for answer, text in zip(example.completions, rendered.texts, strict=True):
        if tokenizer.eos_token and text != example.prompt + answer + tokenizer.eos_token:
            yield Finding(EOS, _shown(answer[-20:]))


def _beginning(example: PreferenceExample, rendered: Rendered) -> Iterator[Finding]:
    """Yield what of an answer's beginning is not as the generation prompt makes it."""
    for messages, text in zip(example.completions, rendered.texts, strict=True):
        prompt = rendered.prompt
        if not text.startswith(prompt):
            shared = shared_length(prompt, text)
            yield Finding(PROMPT, f"{_shown(prompt[shared:])}, not {_shown(text[shared:])}")
            continue
        start = text.find(_first_words(messages[0]), len(prompt))
        if start > 0 and (before := text[len(prompt) : start].rstrip()):
            yield Finding(BEFORE, _shown(before))


def _first_words(message: Message) -> str:
    """Return what an answer begins with; empty if the template has to mark it up."""
    texts = texts_of(message.get("content"))
    if not texts or any(message.get(key) for key in (*REASONING, "tool_calls")):
        return ""
    words = texts[0].strip()
    tag = THINK.match(words)
    return tag[0] if tag else words


def _prompt(
    example: PreferenceExample, rendered: Rendered, facts: TemplateFacts
) -> Iterator[Finding]:
    for name in example.options if facts.tags else []:
        if name not in facts.source:
            yield Finding(UNKNOWN, _shown(name))
    if rendered.history:
        yield Finding(HISTORY, _shown(rendered.history))
    if facts.added and facts.added in rendered.prompt:
        yield Finding(ADDED, _shown(facts.added))
    for date in facts.dates:
        if date in rendered.prompt:
            yield Finding(DATE, _shown(date))


def _end(tokenized: Tokenized, stops: Collection[int], tokenizer: Any) -> Iterator[Finding]:
    """Yield how a completion ends if not with one token at which generation stops."""
    for ids in tokenized.completion_ids if stops else []:
        last = next((at for at in reversed(range(len(ids))) if ids[at] in stops), None)
        if last is None:
            yield Finding(NO_END, f"it ends with {_shown(tokenizer.decode(ids[-8:]))}")
            continue
        if ids[last + 1 :]:
            yield Finding(BEHIND, _shown(tokenizer.decode(ids[last + 1 :])))
        near = range(max(0, last - 4), last)  # white space may stand between two ends
        earlier = next((at for at in near if ids[at] in stops), None)
        if earlier is not None and not tokenizer.decode(ids[earlier + 1 : last]).strip():
            yield Finding(TWO_ENDS, _shown(tokenizer.decode(ids[earlier : last + 1])))


def _trial(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Return the pieces that a template prints before a question, and before a second one."""
    turns = [("user", QUESTION), ("assistant", ANSWER), ("user", AGAIN)]
    as_text = [{"role": role, "content": words} for role, words in turns]
    in_parts = [
        {"role": role, "content": [{"type": "text", "text": words}]} for role, words in turns
    ]
    for messages in (as_text, in_parts):
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            before, between = text.split(QUESTION)[0], text.split(ANSWER)[1].split(AGAIN)[0]
        except Exception:  # a template may raise anything, and leave anything out
            continue
        return PIECES.split(before), PIECES.split(between)
    return [], []


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}")
