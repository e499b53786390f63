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

Other columns are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefopt.data.example import (
    Cells,
    Form,
    Judgement,
    Kind,
    PreferenceExample,
    read_label,
    read_ranking,
)
from prefopt.data.messages import (
    Message,
    common_messages,
    read_messages,
    read_options,
    read_tools,
)
from prefopt.data.pretokenized import IDS_COLUMNS, read_ids
from prefopt.data.tokenize import shared_length

__all__ = ["PROMPT_LIKE", "SOURCE_COLUMNS", "read_example"]

# The columns a row may be read from; whatever else a data set has is extra.
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


class Texts(NamedTuple):
    """Prompt and completions of a row; ``unusable`` says why it has none, else it is None."""

    form: Form
    prompt: Any
    completions: list[Any]
    unusable: str | None = None


def read_example(
    row: Mapping[str, Any], number: int, vocabulary: int | None = None
) -> PreferenceExample:
    r"""Return the prompt and completions of a row, in any of the formats of this module.

    Args:
        row: The row; columns that are None count as absent.
        number: Its place in the data set, for errors.
        vocabulary: How many token ids there are; None for as many as 32 bits hold.

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
    cells = Cells(values, list(row), number, vocabulary)
    if any(column in cells for column in IDS_COLUMNS[:4]):
        return read_ids(cells)
    kind, columns = _read_kind(cells)
    if kind == "paired":
        given = [cells.need(name, "a pair needs 'chosen' and 'rejected'") for name in columns]
        judgement = Judgement.of_pair()
    elif kind == "unpaired":
        given = [cells.need(columns[0], "an unpaired row needs its completion")]
        judgement = Judgement.of_label(read_label(cells))
    else:
        given = _read_list(cells, columns[0])
        columns = columns * len(given)
        judgement = read_ranking(cells, len(given), ranked_as_given=columns[0] == "responses")
    texts = _read_texts(cells, given, columns)
    tools, options = _read_template_arguments(cells, texts.form)
    return PreferenceExample(
        kind=kind,
        form=texts.form,
        prompt=texts.prompt,
        completions=[texts.completions[place] for place in judgement.order if texts.completions],
        desirable=judgement.desirable,
        ranks=judgement.ranks,
        scores=judgement.scores,
        tools=tools,
        options=options,
        unusable=texts.unusable or judgement.unusable,
    )


def _read_kind(row: Cells) -> tuple[Kind, list[str]]:
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


def _read_list(row: Cells, column: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list) or not value:
        found = "an empty list" if isinstance(value, list) else type(value).__name__
        raise row.wrong(column, f"needs a list of completions, got {found}")
    for place, item in enumerate(value):
        if item is None:
            raise row.wrong(column, f"completion {place} is null")
    return value


def _read_texts(row: Cells, given: list[Any], columns: list[str]) -> Texts:
    are_text = [isinstance(value, str) for value in given]
    if any(are_text) and not all(are_text):
        place = are_text.index(False)
        raise row.wrong(columns[place], "holds messages where another completion is text")
    prompt = None
    if "prompt" in row.columns:
        prompt = row.need("prompt", "it may be left out, but not null")
    if all(are_text):
        if isinstance(prompt, str):
            return _plain(row, prompt, given)
        spoken = _messages_column(row, columns) if prompt is None else "prompt"
        if spoken is None:
            return _implicit_text(row, given, columns[0])
        answers = [[{"role": "assistant", "content": text}] for text in given]
        return Texts(
            "messages",
            _with_system(row, read_messages(row.get(spoken), row.number, spoken)),
            answers,
        )
    spoken_given = [
        read_messages(value, row.number, column)
        for value, column in zip(given, columns, strict=True)
    ]
    prompt, completions = _read_conversation(row, prompt, spoken_given, columns)
    return Texts("messages", _with_system(row, prompt), completions)


def _messages_column(row: Cells, columns: Sequence[str]) -> str | None:
    """Return the column that holds the messages of the prompt, None if there is none."""
    for column in ("messages", "conversations"):
        if column in row and column not in columns:
            return column
    return None


def _plain(row: Cells, prompt: str, completions: list[str]) -> Texts:
    if row.get("system"):
        raise row.wrong(
            "system",
            "goes with messages, but the prompt is plain text; make the prompt a list of messages, "
            "or put the system text into the prompt and remove this column",
        )
    return Texts("text", prompt, completions)


def _implicit_text(row: Cells, texts: list[str], column: str) -> Texts:
    """Split texts that begin with the prompt into prompt and completions."""
    first, last = min(texts), max(texts)  # what these two share, all between them share
    shared = first[: shared_length(first, last)]
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
            why = f"it has no {TURN!r}" if len(texts) == 1 else "the completions don't start alike"
            raise row.wrong(
                "prompt", f"is missing, and {column!r} does not show where the prompt ends: {why}"
            )
        if all(text == shared for text in texts):
            return Texts("text", "", [], "identical completions without a prompt")
        # The space belongs to the first word of the completion, as in most tokenizers.
        end = len(shared) - shared.endswith(" ")
    return _plain(row, shared[:end], [text[end:] for text in texts])


def _read_conversation(
    row: Cells, prompt: Any, given: list[list[Message]], columns: list[str]
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
        start = read_messages(row.get(spoken), row.number, spoken)
        length = len(start)
        if all(messages[:length] == start and len(messages) > length for messages in given):
            return start, [messages[length:] for messages in given]
        return start, given
    if are_answers:
        raise row.wrong("prompt", f"is missing, and {columns[0]!r} begins with the answer")
    return _implicit_messages(row, given, columns)


def _implicit_messages(
    row: Cells, given: list[list[Message]], columns: list[str]
) -> tuple[list[Message], list[list[Message]]]:
    shared = common_messages(given)
    if not shared:
        what = "holds a single message" if len(given) == 1 else "share no first message"
        raise row.wrong("prompt", f"is missing, and {' and '.join(dict.fromkeys(columns))} {what}")
    if columns[0] in ("messages", "conversations") and given[0][-1]["role"] != "assistant":
        raise row.wrong(columns[0], "has a label, but does not end with what the assistant says")
    return given[0][:shared], [messages[shared:] for messages in given]


def _with_system(row: Cells, prompt: list[Message]) -> list[Message]:
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


def _read_template_arguments(row: Cells, form: Form) -> tuple[list[Any] | None, dict[str, Any]]:
    """Return the tools and the keyword arguments for the chat template."""
    options = read_options(row.get("chat_template_kwargs"), row.number)
    if form == "messages":
        return read_tools(row.get("tools"), row.number), options
    if read_tools(row.get("tools"), row.number):
        raise row.wrong(
            "tools",
            "are printed by a chat template, but the row holds plain text; make prompt and "
            "completions lists of messages, or remove this column if the text names the tools",
        )
    if options:
        raise row.wrong("chat_template_kwargs", "needs messages, but the row holds plain text")
    return None, options
