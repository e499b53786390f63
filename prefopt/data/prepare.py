"""From a data set in any format to token ids, with counts of rows kept, cut and set aside."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from logging import getLogger
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, IterableDataset

from prefopt.data.audit import Finding, TemplateFacts, audit
from prefopt.data.columns import (
    check_columns,
    check_margins,
    check_numbers,
    check_weights,
    doubts,
    no_utf8,
)
from prefopt.data.ends import stop_tokens
from prefopt.data.errors import DataError
from prefopt.data.example import PreferenceExample
from prefopt.data.formats import SOURCE_COLUMNS, read_example
from prefopt.data.mismatch import StreamMismatch, add_mismatched
from prefopt.data.parts import Parts, map_rows
from prefopt.data.prefix import shared_length
from prefopt.data.prepared import COLUMNS, FACTS, OPTIONAL, OUTPUTS, VERSION
from prefopt.data.report import DataReport, Room, SetAside, count_rows, remarks_of, show_row
from prefopt.data.template import Tokenizer
from prefopt.data.tokenize import Tokenized, tokenize
from prefopt.data.unread import plain_columns, without_media

__all__ = ["ColumnPlan", "PreparedDataset", "prepare_batch", "prepare_dataset"]

NO_ROOM = "the prompt leaves no room for a completion"
NO_TOKENS = "a completion has no token that counts"
MASKS = ("completion_mask", "completion_masks", "chosen_mask", "rejected_mask")

STREAM_BATCH = 100
FIRST_ROWS = 8
EXAMPLE_ROWS = 5

logger = getLogger(__name__)

Options = dict[str, Any]  # the arguments of `prepare_batch` that are the same for every batch


@dataclass(frozen=True)
class PreparedDataset:
    """Prepared rows, and the report of what was kept, cut and set aside.

    Attributes:
        dataset: Rows with the columns ``kind``, ``prompt_ids``, ``completion_ids``,
            ``desirable``, ``ranks`` and ``prefopt_row``; also ``completion_masks``, ``scores``,
            ``kl_completion_ids`` and ``prefopt_dataset`` if there are any; and the columns the data
            had beyond those that were read.
        report: The counts; None for streaming data, which is prepared only as it is read.
        kinds: Kinds of the rows; of streaming data, those of its first rows.
    """

    dataset: Dataset | IterableDataset
    report: DataReport | None
    kinds: frozenset[str]


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: Tokenizer | None,
    *,
    max_length: int | None = 1024,
    num_proc: int | None = None,
    needs_kl: bool = False,
    needs_margins: Sequence[str] = (),
    vocabulary: int | None = None,
    check_kinds: Callable[[frozenset[str]], None] | None = None,
    name: str = "train",
    batch_size: int = 8,
    one_of_several: bool = False,
    parts: Parts | None = None,
) -> PreparedDataset:
    """Turn preferences in any format of ``prefopt.data.formats`` into token ids.

    Completions are cut at their end. A row is set aside if its prompt leaves no room for a
    completion, if a completion has no token that counts, or if the chat template leaves out an
    answer, a message or tools; the report counts them. A stream has no report: it warns of the
    first row it sets aside for each reason.

    Args:
        dataset: The data.
        tokenizer: Tokenizer of the model; None will do if all rows hold token ids.
        max_length: Most tokens of a prompt + completion; None for no limit.
        num_proc: Number of processes; not for streaming data.
        needs_kl: Whether to add ``kl_completion_ids``: for each completion one of another prompt,
            as ``prefopt.data.mismatch`` explains, cut to ``max_length`` behind this row's prompt.
        needs_margins: Kinds of rows that must say by how much a completion is better than another.
        vocabulary: How many token ids the model embeds; rows of token ids may hold no others.
        check_kinds: Called with the kinds of the rows, of a stream again when it meets another; it
            raises ``DataError`` if no loss learns from them.
        name: What to call the data in the report and in errors.
        batch_size: Rows in a batch, where the report compares with padded batches.
        one_of_several: Whether each row is to say, under ``prefopt_dataset``, that it is of this
            dataset.
        parts: Where to keep what is prepared part by part, to go on from there; not for streams.

    Returns:
        Prepared rows in the order of the data, and the report.

    Raises:
        DataError: If a row is none of the formats, or if no row is left. A stream raises it when it
            meets the row.
        ValueError: If ``max_length`` or ``batch_size`` is no number of at least 1, or ``num_proc``
            none of at least 0.
    """
    _check_limits(max_length=(max_length, 1), batch_size=(batch_size, 1), num_proc=(num_proc, 0))
    dataset = dataset.with_format(None)
    options: Options = {
        "tokenizer": tokenizer,
        "max_length": max_length,
        "needs_margins": needs_margins,
        "vocabulary": vocabulary,
        "stops": stop_tokens(tokenizer),
        "dataset": name if one_of_several else None,
    }
    try:
        dataset = without_media(dataset)
        if isinstance(dataset, IterableDataset):
            return _prepare_stream(dataset, options, needs_kl, check_kinds, name)
        if not len(dataset):
            raise DataError("has no rows")
        check_columns(dataset.column_names)
        if "weight" in dataset.column_names:
            check_weights(dataset["weight"])
        prepared = _prepare_rows(dataset, options, num_proc, name, batch_size, parts)
        if check_kinds is not None:
            check_kinds(prepared.kinds)
        if needs_kl and "kl_completion_ids" not in prepared.dataset.column_names:
            rows, donors = add_mismatched(prepared.dataset, max_length, num_proc)
            assert prepared.report is not None
            report = replace(
                prepared.report,
                mismatched_skipped=donors.skipped,
                mismatched_lacking=donors.lacking,
            )
            prepared = replace(prepared, dataset=rows, report=report)
    except DataError as error:
        raise error.within(name) from error.__cause__
    except UnicodeDecodeError as error:
        raise no_utf8(dataset).within(name) from error
    return replace(prepared, dataset=prepared.dataset.remove_columns(list(FACTS)))


def _check_limits(**limits: tuple[Any, int]) -> None:
    for option, (number, least) in limits.items():
        if number is not None and (type(number) is not int or number < least):
            raise ValueError(f"{option} must be a whole number of at least {least}, got {number!r}")


def _prepare_rows(
    dataset: Dataset,
    options: Options,
    num_proc: int | None,
    name: str,
    batch_size: int,
    parts: Parts | None,
) -> PreparedDataset:
    tokenizer, max_length = options["tokenizer"], options["max_length"]
    columns = dataset.column_names
    plan = ColumnPlan.of(columns, one_of_several=options["dataset"] is not None)
    plain = plain_columns(dataset.features, SOURCE_COLUMNS)
    mapped = map_rows(
        dataset,
        prepare_batch,
        parts,
        num_proc,
        remove_columns=[column for column in columns if column not in plan.extra],
        features=plan.features(dataset.features),
        fn_kwargs={**options, "outputs": plan.outputs, "plain": plain, "version": VERSION},
        desc=f"Preparing {name} data",
    )
    reasons = mapped["_reason"][:]
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    set_aside = {
        reason: SetAside(
            count, tuple(row for row, why in enumerate(reasons) if why == reason)[:EXAMPLE_ROWS]
        )
        for reason, count in Counter(why for why in reasons if why is not None).items()
    }
    room = Room.of(mapped["_prompt_tokens"][:]) if NO_ROOM in set_aside else None
    if not kept:
        reasons_text = "; ".join(
            f"{aside.count} row{'s' * (aside.count > 1)}: {why}" for why, aside in set_aside.items()
        )
        advice = f". {room.text(getattr(tokenizer, 'unit', 'tokens'))}" if room else ""
        raise DataError(f"no row is left ({reasons_text}; max_length is {max_length}){advice}")
    remarks = remarks_of(mapped, kept, EXAMPLE_ROWS)
    mapped = mapped.select(kept) if set_aside else mapped
    report = replace(
        count_rows(mapped, name, batch_size),
        rows=len(dataset),
        set_aside=set_aside,
        room=room,
        not_read=_not_read(plan, mapped["_unread"][:]),
        remarks=remarks,
        sample=show_row(mapped[0], kept[0], tokenizer),
        max_length=max_length,
        unit=getattr(tokenizer, "unit", "tokens"),
        eos_missing=tokenizer is not None
        and tokenizer.eos_token is None
        and read_example(dataset[0], 0).form == "text",
    )
    return PreparedDataset(mapped, report, frozenset(report.kinds))


def _not_read(plan: "ColumnPlan", unread: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the columns that are kept as they are, and those that a row did not need."""
    named = [column for column in plan.extra if column not in COLUMNS]
    return tuple(dict.fromkeys([*named, *sorted({name for row in unread for name in row})]))


def _prepare_stream(
    dataset: IterableDataset,
    options: Options,
    needs_kl: bool,
    check_kinds: Callable[[frozenset[str]], None] | None,
    name: str,
) -> PreparedDataset:
    """Prepare rows as they are read, after a look at the first ones."""
    first = list(dataset.take(FIRST_ROWS))
    if not first:
        raise DataError("has no rows")
    columns = list(dict.fromkeys(column for row in first for column in row))
    check_columns(columns)
    plan = ColumnPlan.of(columns)
    plain = plain_columns(dataset.features, SOURCE_COLUMNS)
    options = {**options, "outputs": plan.outputs, "plain": plain}
    batch = {column: [row.get(column) for row in first] for column in columns}
    rows = prepare_batch(batch, range(len(first)), **options)
    if all(rows["_lost"]):
        raise DataError(f"none of the first {len(first)} rows can be used: {rows['_reason'][0]}")
    kinds = frozenset(rows["kind"])
    if unread := _not_read(plan, rows["_unread"]):
        logger.info("%s data: columns that are not read: %s", name, ", ".join(unread))
    if check_kinds is not None:
        check_kinds(kinds)
    features = None if dataset.features is None else plan.features(dataset.features)
    prepared = dataset.map(
        _prepare_stream_batch,
        batched=True,
        batch_size=STREAM_BATCH,
        with_indices=True,
        remove_columns=[column for column in columns if column not in plan.extra],
        features=features,
        fn_kwargs={**options, "first_kinds": kinds, "check_kinds": check_kinds, "name": name},
    ).filter(_KeepUsable(name), with_indices=True)
    if needs_kl and "kl_completion_ids" not in plan.outputs:
        if features is not None:
            features = Features({**features, "kl_completion_ids": OPTIONAL["kl_completion_ids"]})
        prepared = prepared.map(
            StreamMismatch(options["max_length"], name),
            batched=True,
            batch_size=STREAM_BATCH,
            with_indices=True,
            features=features,
        )
    return PreparedDataset(prepared.remove_columns(list(FACTS)), None, kinds)


def _prepare_stream_batch(
    batch: Mapping[str, Sequence[Any]],
    numbers: Sequence[int],
    *,
    name: str,
    first_kinds: frozenset[str],
    check_kinds: Callable[[frozenset[str]], None] | None,
    **options: Any,
) -> dict[str, list[Any]]:
    try:
        prepared = prepare_batch(batch, numbers, **options)
        for kind in {*prepared["kind"]} - first_kinds if check_kinds else ():
            _check_kind(kind, first_kinds, check_kinds, numbers[prepared["kind"].index(kind)])
        return prepared
    except DataError as error:
        raise error.within(name) from error.__cause__


def _check_kind(kind: str, others: frozenset[str], check: Any, number: int) -> None:
    try:
        check(others | {kind})
    except DataError as error:
        raise DataError(error.problem, number) from None


@dataclass
class _KeepUsable:
    """Keeps the usable rows of a stream; warns once of each reason why a row is not.

    What is found in rows that are used is logged once too, as information.
    """

    name: str
    warned_of: set[str] = field(default_factory=set)

    def __call__(self, row: Mapping[str, Any], number: int) -> bool:
        reason = row["_reason"]
        for finding in row["_findings"] if reason is None else []:
            if finding["what"] not in self.warned_of:
                self.warned_of.add(finding["what"])
                logger.info("%s data: row %d: %s: %s", self.name, number, *finding.values())
        if reason is not None and reason not in self.warned_of:
            self.warned_of.add(reason)
            logger.warning(
                "%s data: row %d is set aside: %s (later rows with this reason are not reported)",
                self.name,
                number,
                reason,
            )
        return reason is None


class ColumnPlan(NamedTuple):
    """The columns of a data set that are kept, and those that ``prepare_batch`` returns."""

    extra: list[str]
    outputs: list[str]

    @classmethod
    def of(cls, columns: Sequence[str], one_of_several: bool = False) -> "ColumnPlan":
        """Return the plan for a data set with these columns; several say which a row is of."""
        has_ids = "prompt_ids" in columns
        wanted = {
            "completion_masks": has_ids and any(column in MASKS for column in columns),
            "scores": "scores" in columns
            and any(c in columns for c in ("completions", "responses", "completion_ids")),
            "kl_completion_ids": has_ids
            and any(c in columns for c in ("kl_completion_ids", "KL_completion_ids")),
            "prefopt_dataset": one_of_several,
        }
        outputs = [*OUTPUTS, *(column for column, want in wanted.items() if want), *FACTS]
        read = {*SOURCE_COLUMNS} - (set() if wanted["scores"] else {"scores"})
        if not has_ids:
            for column in {*OUTPUTS, *OPTIONAL} & {*columns} - {"ranks", "scores"}:
                raise DataError(
                    "is the name of a column of prepared data; rename yours with "
                    "dataset.rename_column, or --columns",
                    column=column,
                )
        if clash := next((column for column in columns if column in FACTS), None):
            raise DataError(
                "is a name that prefopt uses while it prepares rows; rename yours", column=clash
            )
        extra = [column for column in columns if column not in read]
        return cls(extra, outputs)

    def features(self, given: Features) -> Features:
        """Return the types of the columns that are kept, and of those that are added."""
        types = OUTPUTS | OPTIONAL | FACTS
        kept = {column: given[column] for column in self.extra}
        return Features({**kept, **{column: types[column] for column in self.outputs}})


def prepare_batch(
    batch: Mapping[str, Sequence[Any]],
    numbers: Sequence[int],
    *,
    tokenizer: Tokenizer | None,
    max_length: int | None,
    outputs: Sequence[str],
    needs_margins: Sequence[str] = (),
    vocabulary: int | None = None,
    plain: Sequence[str] = (),
    stops: Sequence[int] = (),
    version: int = VERSION,
    dataset: str | None = None,
) -> dict[str, list[Any]]:
    """Prepare a batch of rows; the function that ``datasets`` maps.

    Columns named in ``plain`` hold no content and are not looked at.

    All that decides the result is an argument: ``datasets`` names its cache files after them.

    Raises:
        DataError: If a row is none of the formats.
    """
    check_numbers(batch, numbers)
    columns = [column for column in batch if column not in plain]
    others = dict.fromkeys(plain)
    cells = [
        {**others, **{column: batch[column][place] for column in columns}}
        for place in range(len(numbers))
    ]
    examples = [
        read_example(row, number, vocabulary) for row, number in zip(cells, numbers, strict=True)
    ]
    kinds = {i: one.kind for i, one in enumerate(examples) if one.kind in needs_margins}
    check_margins(batch, numbers, kinds)
    try:
        tokenized = tokenize(examples, numbers, tokenizer)
    except (TypeError, UnicodeEncodeError):
        _check_texts(batch, numbers)
        raise
    if "kl_completion_ids" in outputs:
        for example, number in zip(examples, numbers, strict=True):
            if example.kl_completions is None:
                raise DataError("is null; other rows have it", number, "kl_completion_ids")
    facts = TemplateFacts.of(tokenizer) if tokenizer else TemplateFacts()
    rows = []
    for place, (example, ids) in enumerate(zip(examples, tokenized, strict=True)):
        numbers_of_row = {column: batch[column][place] for column in COLUMNS if column in batch}
        findings = audit(example, ids, tokenizer, facts, stops) + doubts(example, numbers_of_row)
        row = _prepare_row(example, ids, findings, max_length)
        rows.append(row | {"prefopt_row": numbers[place], "prefopt_dataset": dataset})
    return {column: [row[column] for row in rows] for column in outputs}


def _check_texts(batch: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> None:
    """Raise if there is text that is no Unicode, which tokenizers refuse without a word of it."""
    for place, number in enumerate(numbers):
        for column in batch:
            try:
                json.dumps(batch[column][place], ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                raise DataError("holds no valid text: half a character", number, column) from None


def _prepare_row(
    example: PreferenceExample,
    tokenized: Tokenized,
    findings: Sequence[Finding],
    max_length: int | None,
) -> dict[str, Any]:
    """Return the prepared row, cut to ``max_length``, and its facts."""
    prompt, whole = tokenized.prompt_ids, tokenized.completion_ids
    lost = tokenized.rendered.lost if tokenized.rendered else None
    room = None if max_length is None else max(max_length - len(prompt), 0)
    completions = [ids[:room] for ids in whole]
    mismatched = [ids[:room] for ids in example.kl_completions or []]
    masks = [mask[:room] for mask in example.masks or [[True] * len(ids) for ids in whole]]
    # Nothing predicts the first token of a text.
    counted = [mask[1:] if not prompt else mask for mask in masks]
    reason = example.unusable or lost
    if reason is None and room == 0 and any(whole):
        reason = NO_ROOM
    if reason is None and not all(map(any, counted)):
        reason = NO_TOKENS
    used = reason is None
    return {
        "kind": example.kind,
        "prompt_ids": prompt if used else [],
        "completion_ids": completions if used else [],
        "desirable": example.desirable if used else [],
        "ranks": example.ranks if used else [],
        "completion_masks": masks if used else [],
        "scores": example.scores if used else [],
        "kl_completion_ids": mismatched if used else [],
        "_reason": reason,
        "_lost": lost is not None,
        "_findings": [finding._asdict() for finding in findings],
        "_prompt_tokens": len(prompt),
        "_cut_tokens": [len(a) - len(b) for a, b in zip(whole, completions, strict=True)],
        "_identical": _any_equal(whole),
        "_identical_after": _any_equal(completions) and not _any_equal(whole),
        "_empty": any(map(_is_empty, example.completions)),
        "_moved": bool(tokenized.unused_ids),
        "_repeated": example.repeated,
        "_unread": list(example.unread),
        "_layout_tokens": _layout_tokens(prompt, completions) if used else 0,
        "_keys": [_key(ids) for ids in (prompt, *completions)] if used else [],
    }


def _is_empty(completion: str | list[Any]) -> bool:
    """Return whether a completion of text or messages says nothing at all."""
    if isinstance(completion, str):
        return not completion.strip()
    return all(
        isinstance(turn, Mapping)
        and {*turn} <= {"role", "content"}
        and not str(turn.get("content", "")).strip()
        for turn in completion
    )


def _any_equal(sequences: Sequence[Sequence[int]]) -> bool:
    return len({tuple(sequence) for sequence in sequences}) < len(sequences)


def _layout_tokens(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> int:
    """Return how many tokens ``engine.layout`` places for an example in ``shared_prefix``."""
    shared = min(shared_length(completions[0], other) for other in completions)
    ends_here = all(len(ids) == shared for ids in completions)
    branches = sum(max(len(ids) - shared - 1, 0) for ids in completions)
    return len(prompt) + shared - ends_here + branches


def _key(ids: Sequence[int]) -> int:
    """Return a number that is equal for equal token ids, on every machine; 64 bits."""
    digest = blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
