r"""Formats of preference data: any row people have becomes a prompt with N completions.

A row's kind is read from the columns that are not null:

==========  =====================================================================================
paired      ``chosen``, ``rejected``
unpaired    ``completion``, ``label`` (True, False, 1 or 0); or ``messages`` and ``label``
ranked      ``completions`` with ``ranks`` (0 or 1 is best, ties share) or ``scores`` (more is
            better); or ``responses``, which are best first unless there are ranks or scores
==========  =====================================================================================

Prompts and completions are text, messages (role/content or from/value), or token ids. The prompt
of text and messages is in ``prompt``, else in ``messages`` or ``conversations`` if the completions
don't hold it, else it is what the completions of the row share at the start: whole messages; in
transcripts of the Anthropic HH kind everything up to the last shared ``\n\nAssistant:``; in other
text the shared characters. Text after a prompt of messages is what the assistant says. ``system``
goes before the messages of a prompt, ``tools`` and ``chat_template_kwargs`` to the chat template.

Token ids: ``prompt_ids`` with ``chosen_ids`` and ``rejected_ids``, or with ``completion_ids`` (one
list with ``label``, or a list of lists with ``kind``, ``label``, ``ranks`` or ``scores``); with
masks ``chosen_mask`` and ``rejected_mask``, or ``completion_mask`` (or ``completion_masks``).

Other columns are not looked at.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefopt.data.errors import DataError
from prefopt.data.messages import (
    Message,
    common_messages,
    read_messages,
    read_options,
    read_tools,
)

__all__ = ["IDS_COLUMNS", "SOURCE_COLUMNS", "Example", "Kind", "read_example"]

Kind = Literal["paired", "unpaired", "ranked"]
Form = Literal["text", "messages", "ids"]

# The columns a row may be read from; whatever else a data set has is extra.
IDS_COLUMNS = (
    "prompt_ids",
    "completion_ids",
    "chosen_ids",
    "rejected_ids",
    "completion_mask",
    "completion_masks",
    "chosen_mask",
    "rejected_mask",
    "kl_completion_ids",
    "KL_completion_ids",
    "kind",
    "desirable",
)
SOURCE_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "completions",
    "responses",
    "ranks",
    "scores",
    "messages",
    "conversations",
    "system",
    "tools",
    "chat_template_kwargs",
    *IDS_COLUMNS,
)
# Columns that hold the prompt in some data sets, under a name that does not say so for certain.
PROMPT_LIKE = ("question", "instruction", "query", "input", "context")
TURN = "\n\nAssistant:"
ACCEPTED = (
    "'prompt' with 'chosen' and 'rejected' (paired), 'prompt' with 'completion' and 'label' "
    "(unpaired), 'prompt' with 'completions' and 'ranks' or 'scores' (ranked), or 'prompt_ids' "
    "with token ids"
)


@dataclass(frozen=True)
class Example:
    """A prompt with its completions, as the row gives them.

    Attributes:
        kind: Paired (chosen first), unpaired (one completion), or ranked (best first).
        form: Whether prompt and completions are text, messages or token ids.
        prompt: The prompt.
        completions: The completions, in the same form.
        desirable: Whether each completion is wanted; empty if ranked.
        ranks: Rank of each completion, 0 is best, ties share; empty if unpaired.
        scores: Score of each completion, if ranked with scores.
        masks: Which tokens of each completion count, if given; for token ids only.
        kl_completions: Mismatched completion of each completion, if given; for token ids only.
        tools: Tool schemas for the chat template.
        options: Further arguments of the chat template.
        unusable: Why there is nothing to learn from the row; None if there is.
    """

    kind: Kind
    form: Form
    prompt: Any
    completions: list[Any]
    desirable: list[bool] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    masks: list[list[bool]] | None = None
    kl_completions: list[list[int]] | None = None
    tools: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    unusable: str | None = None


@dataclass(frozen=True)
class _Row:
    """One row of the data set: its values that are not null, and where it stands."""

    values: Mapping[str, Any]
    columns: Sequence[str]
    number: int

    def __contains__(self, column: str) -> bool:
        return column in self.values

    def get(self, column: str) -> Any:
        """Return the value of the column, None if it is null or missing."""
        return self.values.get(column)

    def need(self, column: str, why: str) -> Any:
        """Return the value of the column, which must be there."""
        if column in self.values:
            return self.values[column]
        problem = "is null" if column in self.columns else "is missing"
        raise self.wrong(column, f"{problem}; {why}")

    def wrong(self, column: str | None, problem: str) -> DataError:
        """Return the error that the column of this row is wrong."""
        return DataError(problem, self.number, column)


def read_example(row: Mapping[str, Any], number: int) -> Example:
    r"""Return the prompt and completions of a row, in any of the formats of this module.

    Args:
        row: The row; columns that are None count as absent.
        number: Its place in the data set, for errors.

    Raises:
        DataError: If the row is none of the formats; it names row and column.

    Examples:
        >>> pair = {
        ...     "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
        ...     "rejected": "\n\nHuman: Hi\n\nAssistant: Hell",
        ... }
        >>> example = read_example(pair, 0)
        >>> example.kind, example.prompt, example.completions
        ('paired', '\n\nHuman: Hi\n\nAssistant:', [' Hello', ' Hell'])
    """
    values = {column: value for column, value in row.items() if value is not None}
    cells = _Row(values, list(row), number)
    if any(column in cells for column in IDS_COLUMNS[:4]):
        return _read_ids(cells)
    kind, columns = _read_kind(cells)
    if kind == "paired":
        given = [cells.need(name, "a pair needs 'chosen' and 'rejected'") for name in columns]
        judged: dict[str, Any] = {"desirable": [True, False], "ranks": [0, 1]}
    elif kind == "unpaired":
        given = [cells.need(columns[0], "an unpaired row needs its completion")]
        judged = {"desirable": [_read_label(cells)]}
    else:
        given = _read_list(cells, columns[0])
        columns = columns * len(given)
        judged = _read_ranking(cells, len(given), ranked_as_given=columns[0] == "responses")
    order = judged.pop("order", range(len(given)))
    form, prompt, completions, unusable = _read_texts(cells, given, columns)
    return Example(
        kind=kind,
        form=form,
        prompt=prompt,
        completions=[completions[place] for place in order] if completions else [],
        unusable=unusable or judged.pop("unusable", None),
        **({k: v for k, v in judged.items() if k != "unusable"}),
        **_read_template_arguments(cells, form),
    )


def _read_kind(row: _Row) -> tuple[Kind, list[str]]:
    """Return the kind of a row of text or messages, and the columns of its completions."""
    found: dict[Kind, list[str]] = {}
    if "chosen" in row or "rejected" in row:
        found["paired"] = ["chosen", "rejected"]
    if "completion" in row:
        found["unpaired"] = ["completion"]
    if "completions" in row:
        found["ranked"] = ["completions"]
    if len(found) > 1:
        kinds = " and ".join(f"{kind} ({', '.join(names)})" for kind, names in found.items())
        raise row.wrong(None, f"has the columns of {kinds}; remove those it is not")
    if not found and "responses" in row:
        found["ranked"] = ["responses"]
    for column in ("messages", "conversations"):
        if not found and column in row and "label" in row:
            found["unpaired"] = [column]
    if found:
        return next(iter(found.items()))
    null = [name for name in ("chosen", "completion", "completions") if name in row.columns]
    if null:
        raise row.wrong(null[0], "is null; a row needs its completions")
    raise row.wrong(
        None, f"the columns {', '.join(sorted(row.columns))} are no preferences; use {ACCEPTED}"
    )


def _read_list(row: _Row, column: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list) or not value:
        found = "an empty list" if isinstance(value, list) else type(value).__name__
        raise row.wrong(column, f"needs a list of completions, got {found}")
    for place, item in enumerate(value):
        if item is None:
            raise row.wrong(column, f"completion {place} is null")
    return value


def _read_label(row: _Row) -> bool:
    label = row.need("label", "an unpaired row needs True, False, 1 or 0")
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise row.wrong(
            "label",
            f"needs True, False, 1 or 0, got {label!r}; map what the data has to these first, and "
            "leave out rows that say neither",
        )
    return bool(label)


def _read_ranking(row: _Row, count: int, *, ranked_as_given: bool) -> dict[str, Any]:
    """Return ranks, scores, and the order that puts the best completion first."""
    scores = _read_numbers(row, "scores", count) if "scores" in row else []
    if "ranks" in row:
        keys = _read_numbers(row, "ranks", count)
    elif scores:
        keys = [-score for score in scores]
    elif ranked_as_given:
        keys = list(range(count))
    else:
        raise row.wrong(
            "ranks", "is missing; completions need 'ranks' (0 is best) or 'scores' (more is better)"
        )
    places = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    order = sorted(range(count), key=lambda place: keys[place])
    unusable = None
    if count == 1:
        unusable = "a single completion is no ranking"
    elif len(places) == 1:
        unusable = "all completions share one rank"
    return {
        "order": order,
        "ranks": [places[keys[place]] for place in order],
        "scores": [scores[place] for place in order] if scores else [],
        "unusable": unusable,
    }


def _read_numbers(row: _Row, column: str, count: int) -> list[float]:
    numbers = row.get(column)
    if not isinstance(numbers, list) or len(numbers) != count:
        found = f"{len(numbers)} of them" if isinstance(numbers, list) else type(numbers).__name__
        raise row.wrong(column, f"needs a list of {count} numbers, one a completion, got {found}")
    for place, number in enumerate(numbers):
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise row.wrong(column, f"number {place} is {number!r}; it must be a finite number")
    return numbers


def _read_texts(
    row: _Row, given: list[Any], columns: list[str]
) -> tuple[Form, Any, list[Any], str | None]:
    """Return form, prompt, completions, and why the row is unusable, if it is."""
    are_text = [isinstance(value, str) for value in given]
    if any(are_text) and not all(are_text):
        place = are_text.index(False)
        raise row.wrong(columns[place], "holds messages where another completion is text")
    prompt = row.need("prompt", "it may be left out, but not null") if _has(row, "prompt") else None
    if all(are_text):
        if isinstance(prompt, str):
            return _plain(row, prompt, given)
        spoken = _messages_column(row, columns) if prompt is None else "prompt"
        if spoken is None:
            return _implicit_text(row, given, columns[0])
        answers = [[{"role": "assistant", "content": text}] for text in given]
        return "messages", _with_system(row, _prompt_messages(row, spoken)), answers, None
    spoken_given = [
        read_messages(value, row.number, column)
        for value, column in zip(given, columns, strict=True)
    ]
    prompt, completions = _read_conversation(row, prompt, spoken_given, columns)
    return "messages", _with_system(row, prompt), completions, None


def _has(row: _Row, column: str) -> bool:
    return column in row.columns


def _messages_column(row: _Row, columns: Sequence[str]) -> str | None:
    """Return the column that holds the messages of the prompt, None if there is none."""
    for column in ("messages", "conversations"):
        if column in row and column not in columns:
            return column
    return None


def _prompt_messages(row: _Row, column: str) -> list[Message]:
    return read_messages(row.get(column), row.number, column)


def _plain(row: _Row, prompt: str, texts: list[str]) -> tuple[Form, Any, list[Any], str | None]:
    if row.get("system"):
        raise row.wrong(
            "system",
            "goes with messages, but the prompt is plain text; make the prompt a list of messages, "
            "or put the system text into the prompt and remove this column",
        )
    return "text", prompt, texts, None


def _implicit_text(
    row: _Row, texts: list[str], column: str
) -> tuple[Form, Any, list[Any], str | None]:
    """Tell the prompt from the completions of texts that begin with it."""
    shared = _shared_characters(texts)
    turn = shared.rfind(TURN)
    if turn >= 0:
        end = turn + len(TURN)
    else:
        named = [name for name in PROMPT_LIKE if name in row]
        if named:
            raise row.wrong(
                named[0],
                "looks like the prompt, which must be called 'prompt': "
                f"dataset.rename_column({named[0]!r}, 'prompt')",
            )
        if len(texts) == 1 or not shared:
            raise row.wrong(
                "prompt",
                f"is missing, and {column!r} does not tell where the prompt ends: "
                + (
                    f"it has no {TURN!r}"
                    if len(texts) == 1
                    else "the completions don't start alike"
                ),
            )
        if all(text == shared for text in texts):
            return "text", "", [], "identical completions without a prompt"
        # The space belongs to the first word of the completion, as in most tokenizers.
        end = len(shared) - shared.endswith(" ")
    return _plain(row, shared[:end], [text[end:] for text in texts])


def _shared_characters(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all between them share
    for place, character in enumerate(first):
        if place == len(last) or character != last[place]:
            return first[:place]
    return first


def _read_conversation(
    row: _Row, prompt: Any, given: list[list[Message]], columns: list[str]
) -> tuple[list[Message], list[list[Message]]]:
    """Return the prompt and the completions of a row whose completions are messages."""
    are_answers = all(messages[0]["role"] not in ("system", "user") for messages in given)
    if isinstance(prompt, str):
        if are_answers:
            return [{"role": "user", "content": prompt}], given
        start, completions = _implicit_messages(row, given, columns)
        if all(message.get("content") != prompt for message in start):
            raise row.wrong(
                "prompt",
                f"is not among the messages that begin {columns[0]!r}; remove one of the two",
            )
        return start, completions
    spoken = "prompt" if prompt is not None else _messages_column(row, columns)
    if spoken is not None and (prompt is not None or are_answers):
        start = _prompt_messages(row, spoken)
        length = len(start)
        if all(messages[:length] == start and len(messages) > length for messages in given):
            return start, [messages[length:] for messages in given]
        return start, given
    if are_answers:
        raise row.wrong("prompt", f"is missing, and {columns[0]!r} begins with the answer")
    return _implicit_messages(row, given, columns)


def _implicit_messages(
    row: _Row, given: list[list[Message]], columns: list[str]
) -> tuple[list[Message], list[list[Message]]]:
    shared = common_messages(given)
    if not shared:
        what = "holds a single message" if len(given) == 1 else "share no first message"
        raise row.wrong("prompt", f"is missing, and {' and '.join(dict.fromkeys(columns))} {what}")
    return given[0][:shared], [messages[shared:] for messages in given]


def _with_system(row: _Row, prompt: list[Message]) -> list[Message]:
    """Return the messages of the prompt, after those of the ``system`` column."""
    system = row.get("system")
    if not system:
        return prompt
    if not isinstance(system, str):
        raise row.wrong("system", f"needs text, got {type(system).__name__}")
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": system}, *prompt]
    if prompt[0]["content"] != system:
        raise row.wrong("system", "differs from the system message that the prompt begins with")
    return prompt


def _read_template_arguments(row: _Row, form: Form) -> dict[str, Any]:
    options = read_options(row.get("chat_template_kwargs"), row.number)
    if form == "messages":
        return {"options": options, "tools": read_tools(row.get("tools"), row.number)}
    if options:
        raise row.wrong("chat_template_kwargs", "needs messages, but the row holds plain text")
    return {}


def _read_ids(row: _Row) -> Example:
    """Return a row of token ids, which nothing is added to."""
    why = "a row of token ids needs 'prompt_ids', and 'chosen_ids' and 'rejected_ids', or "
    why += "'completion_ids'"
    prompt = _ids(row, "prompt_ids", row.need("prompt_ids", why), may_be_empty=True)
    judged: dict[str, Any]
    if "chosen_ids" in row or "rejected_ids" in row:
        kind: Kind = "paired"
        names = ("chosen_ids", "rejected_ids")
        completions = [_ids(row, name, row.need(name, why)) for name in names]
        judged = {"desirable": [True, False], "ranks": [0, 1]}
        masks = _read_masks(row, completions, ("chosen_mask", "rejected_mask"))
        order: Sequence[int] = (0, 1)
    else:
        given = row.need("completion_ids", why)
        nested = isinstance(given, list) and bool(given) and not _is_number(given[0])
        column = "completion_ids"
        completions = [_ids(row, column, ids) for ids in (given if nested else [given])]
        kind, judged = _judge_ids(row, completions, nested)
        order = judged.pop("order", range(len(completions)))
        masks = _read_masks(row, completions, ())
    return Example(
        kind=kind,
        form="ids",
        prompt=prompt,
        completions=[completions[place] for place in order],
        masks=[masks[place] for place in order] if masks is not None else None,
        kl_completions=_read_kl(row, order),
        **judged,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _judge_ids(
    row: _Row, completions: list[list[int]], nested: bool
) -> tuple[Kind, dict[str, Any]]:
    """Return the kind of a row of ``completion_ids`` and what is said of its completions."""
    count = len(completions)
    stated = row.get("kind")
    if stated not in (None, "paired", "unpaired", "ranked"):
        raise row.wrong("kind", f"needs 'paired', 'unpaired' or 'ranked', got {stated!r}")
    if stated == "paired":
        if count != 2:
            raise row.wrong("completion_ids", f"a pair has 2 completions, got {count}")
        return "paired", {"desirable": [True, False], "ranks": [0, 1]}
    if stated == "unpaired" or (stated is None and ("label" in row or not nested)):
        if count != 1:
            raise row.wrong("completion_ids", f"an unpaired row has 1 completion, got {count}")
        desirable = row.get("desirable")
        if "label" not in row and isinstance(desirable, list) and len(desirable) == 1:
            return "unpaired", {"desirable": [bool(desirable[0])]}
        return "unpaired", {"desirable": [_read_label(row)]}
    if stated is None and not ("ranks" in row or row.get("scores")):
        raise row.wrong(
            "completion_ids",
            "does not tell which completion is better: use 'chosen_ids' and 'rejected_ids', or add "
            "'label', 'ranks', 'scores' or 'kind'",
        )
    if not row.get("scores"):  # prepared rows of other kinds have an empty list there
        row = _Row({k: v for k, v in row.values.items() if k != "scores"}, row.columns, row.number)
    return "ranked", _read_ranking(row, count, ranked_as_given=False)


def _ids(row: _Row, column: str, value: Any, *, may_be_empty: bool = False) -> list[int]:
    if not isinstance(value, list):
        raise row.wrong(column, f"needs a list of token ids, got {type(value).__name__}")
    for place, token in enumerate(value):
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise row.wrong(column, f"token {place} is {token!r}; a token id is an integer >= 0")
    if not value and not may_be_empty:
        raise row.wrong(column, "is empty; a completion needs at least one token")
    return value


def _read_masks(
    row: _Row, completions: list[list[int]], pair: tuple[str, ...]
) -> list[list[bool]] | None:
    """Return the mask of each completion, or None if the row has none."""
    if any(name in row for name in pair):
        names: Sequence[str] = pair
        given: Any = [row.need(name, "both completions need a mask, or neither") for name in pair]
    else:
        found = [name for name in ("completion_mask", "completion_masks") if name in row]
        if not found:
            return None
        names, given = found[:1] * len(completions), row.get(found[0])
        if isinstance(given, list) and given and _is_number(given[0]):
            given = [given]
    if not isinstance(given, list) or len(given) != len(completions):
        raise row.wrong(names[0], f"needs {len(completions)} masks, one a completion")
    for name, mask, ids in zip(names, given, completions, strict=True):
        if not isinstance(mask, list) or len(mask) != len(ids):
            found_length = len(mask) if isinstance(mask, list) else type(mask).__name__
            raise row.wrong(
                name, f"needs {len(ids)} values, one a token of the completion, got {found_length}"
            )
        for place, counts in enumerate(mask):
            if counts not in (0, 1):
                raise row.wrong(name, f"value {place} is {counts!r}; it needs True or False")
    return [[bool(counts) for counts in mask] for mask in given]


def _read_kl(row: _Row, order: Sequence[int]) -> list[list[int]] | None:
    count = len(order)
    for column in ("kl_completion_ids", "KL_completion_ids"):
        given = row.get(column)
        if given is None:
            continue
        if isinstance(given, list) and given and _is_number(given[0]):
            given = [given]
        if not isinstance(given, list) or len(given) != count:
            raise row.wrong(column, f"needs {count} lists of token ids, one a completion")
        return [_ids(row, column, given[place]) for place in order]
    return None
