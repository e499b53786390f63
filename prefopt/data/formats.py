r"""Formats of preference data: any row people have becomes a prompt with N completions.

A row's kind is read from the columns that are not null:

==========  =====================================================================================
paired      ``chosen``, ``rejected``
unpaired    ``completion``, ``label`` (True, False, 1 or 0); or ``messages`` and ``label``
ranked      ``completions`` with ``ranks`` (0 or 1 is best, ties share) or ``scores`` (more is
            better); or ``responses``, which are best first unless there are ranks or scores
==========  =====================================================================================

Prompts and completions are text, messages (role/content or from/value), or token ids. The prompt
of text and messages is in ``prompt``, else in ``messages``, ``conversations``, ``trajectory`` or
``instruction`` (``prefopt.data.layouts``) if the completions don't hold it, else it is what the
completions of the row share at the start: whole messages; in transcripts of the Anthropic HH kind
everything up to the last shared ``\n\nAssistant:``; in other text the shared characters. Text after
a prompt of messages is what the assistant says. ``system`` goes before the messages of a prompt,
``tools`` and ``chat_template_kwargs`` to the chat template.

Token ids: ``prompt_ids`` with ``chosen_ids`` and ``rejected_ids``, or with ``completion_ids`` (one
list with ``label``, or a list of lists with ``kind``, ``label``, ``ranks`` or ``scores``); with
masks ``chosen_mask`` and ``rejected_mask``, or ``completion_mask`` (or ``completion_masks``).

Other columns are not read; what they must not hold is told in ``prefopt.data.unread``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefopt.data.example import (
    Cells,
    Form,
    Judgement,
    Kind,
    PreferenceExample,
    read_label,
    read_ranking,
)
from prefopt.data.layouts import ALPACA_COLUMNS, unwrap
from prefopt.data.messages import read_options, read_tools
from prefopt.data.names import column_hint
from prefopt.data.pretokenized import IDS_COLUMNS, read_ids
from prefopt.data.prompts import read_texts
from prefopt.data.unread import refuse_unread

__all__ = ["SOURCE_COLUMNS", "read_example"]

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
    "trajectory",
    *ALPACA_COLUMNS,
    "system",
    "tools",
    "chat_template_kwargs",
    *IDS_COLUMNS,
)
TEXTS_OF_IDS = ("prompt", "chosen", "rejected", "completion", "completions")
PREPARED = {"kind", "prompt_ids", "completion_ids", "desirable"}
HINTED = ("chosen", "rejected", "completion", "completions", "label")
ACCEPTED = (
    "'prompt' with 'chosen' and 'rejected' (paired), 'prompt' with 'completion' and 'label' "
    "(unpaired), 'prompt' with 'completions' and 'ranks' or 'scores' (ranked), or 'prompt_ids' "
    "with token ids"
)


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
        example = read_ids(cells)
        if cells.values.keys() >= PREPARED:  # these rows were checked before
            return example
        unread = _unread(cells)
        cells.read.update(TEXTS_OF_IDS)  # the ids stand for these texts
        refuse_unread(cells)
        return replace(example, unread=unread)
    for column in IDS_COLUMNS:
        if column in cells:
            raise cells.wrong(column, "goes with token ids, but the row has none in 'prompt_ids'")
    cells = unwrap(cells)
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
    texts = read_texts(cells, given, columns)
    tools, options = _read_template_arguments(cells, texts.form)
    refuse_unread(cells, texts.prompt, texts.completions)
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
        repeated=texts.repeated,
        unread=_unread(cells),
    )


def _unread(row: Cells) -> tuple[str, ...]:
    """Return the columns that other rows may be read from, but not this one."""
    return tuple(name for name in SOURCE_COLUMNS if name in row and name not in row.read)


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
    for column in ("messages", "conversations", "output"):
        is_there = column in row and (column != "output" or "instruction" in row)
        if not found and is_there and "label" in row:
            found["unpaired"] = [column]
    if found:
        return next(iter(found.items()))
    null = [name for name in ("chosen", "completion", "completions") if name in row.columns]
    if null:
        raise row.wrong(null[0], "is null; a row needs its completions")
    hints = [column_hint(column, row.values) for column in HINTED if column not in row.columns]
    raise row.wrong(
        None,
        f"the columns {', '.join(sorted(row.columns))} do not hold preferences; use {ACCEPTED}"
        f"{''.join(hints)}",
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
