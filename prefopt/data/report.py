"""How many rows of a data set were kept, cut and set aside, and how many tokens they hold."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from prefopt.data.prepared import list_lengths, read_chunks

__all__ = [
    "DataReport",
    "Lengths",
    "Remark",
    "Room",
    "Sample",
    "SetAside",
    "count_rows",
    "show_row",
]

SHOWN = 1200  # characters of a text, half of them at its end


@dataclass(frozen=True)
class Lengths:
    """Lengths of many sequences, in tokens."""

    count: int = 0
    total: int = 0
    longest: int = 0

    @property
    def mean(self) -> float:
        """Mean length in tokens, 0 if there is none."""
        return self.total / self.count if self.count else 0.0


NONE = Lengths()


@dataclass(frozen=True)
class SetAside:
    """Rows that are not used, for one reason: how many, and the first few of them."""

    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Room:
    """Lengths of prompts, some of which leave no room for a completion.

    Attributes:
        median: Tokens of the prompt in the middle.
        longest: Tokens of the longest prompt.
        enough: The ``max_length`` at which 95% of the rows have room for a token behind the prompt.
    """

    median: int
    longest: int
    enough: int

    @classmethod
    def of(cls, prompt_lengths: Sequence[int]) -> "Room":
        """Return what prompts of these lengths, at least one, need.

        Examples:
            >>> Room.of([1, 2, 3, 100])
            Room(median=2, longest=100, enough=101)
        """
        median, most = np.quantile(prompt_lengths, [0.5, 0.95], method="inverted_cdf")
        return cls(int(median), max(prompt_lengths), int(most) + 1)

    def text(self, unit: str) -> str:
        """Return it in words."""
        return (
            f"Half of the prompts have at most {self.median:,} {unit}, the longest has "
            f"{self.longest:,}: max_length={self.enough} leaves room in 95% of the rows, and more "
            "keeps more of their completions"
        )


@dataclass(frozen=True)
class Remark:
    """Something to know about rows that are used: how many they are, and the first few.

    ``example`` is how it looks in the first of them.
    """

    count: int
    rows: tuple[int, ...]
    example: str


@dataclass(frozen=True)
class Sample:
    """A row as the model sees it: the text of the prompt's tokens, and of each completion's."""

    row: int
    prompt: str
    completions: tuple[str, ...]
    names: tuple[str, ...]

    def parts(self) -> list[tuple[str, str]]:
        """Return each part's title and text; the prompt is the first, the others are trained on."""
        titles = [f"row {self.row}, prompt", *(f"{name}, trained on" for name in self.names)]
        return [
            (title, _shorten(text))
            for title, text in zip(titles, (self.prompt, *self.completions), strict=True)
        ]


@dataclass(frozen=True)
class DataReport:
    """Counts of a data set that was prepared.

    Token counts are of the rows that were kept. The three layouts count what goes through the
    model: the last token of a completion does not, since nothing is predicted from it.

    Attributes:
        name: What the data set is called, as ``train``.
        rows: Rows that came in.
        kept: Rows that are used.
        kinds: Rows kept of each kind.
        set_aside: Rows not used, by reason.
        room: How long all prompts are; None where each leaves room for a completion.
        remarks: Rows kept whose text differs from what inference makes, by what differs, and such
            whose text had its BOS or EOS already.
        sample: The first row that is kept; None without a tokenizer.
        cut_rows: Rows kept with a completion cut to ``max_length``.
        cut_completions: Completions that were cut.
        cut_tokens: Tokens that were cut off.
        identical: Rows kept in which two completions are the same.
        identical_after_cut: Rows kept in which two completions are the same only after the cut.
        empty: Rows kept in which a completion has no word, only an end.
        boundary_moved: Rows kept whose completions begin before the end of the tokenised prompt.
        repeated: Rows kept whose completions began with the prompt, which was taken out of them.
        not_read: Columns that say something of a row and are not used.
        prompts: Lengths of the prompts.
        completions: Lengths of all completions.
        chosen: Lengths of the chosen completions of pairs.
        rejected: Lengths of the rejected completions of pairs.
        desirable: Unpaired rows whose label is True.
        undesirable: Unpaired rows whose label is False.
        shared_tokens: Tokens with every shared prefix once.
        separate_tokens: Tokens with every prompt + completion by itself, without padding.
        padded_tokens: The same padded to the longest of each batch, in the order of the data.
        batch_size: Rows in a batch, for ``padded_tokens``.
        max_length: Most tokens of a prompt + completion; None for no limit.
        unit: What is counted: ``tokens``, or ``bytes`` where no tokenizer was given.
        eos_missing: Whether text ends without end-of-sequence token, since the tokenizer has none.
        mismatched_skipped: Mismatched completions that could not come from the row before.
        mismatched_lacking: Completions for which there is no mismatched one.
        weight: How often each row is used in an epoch, where there are several datasets.
        used: Rows of an epoch that are so used; None where each row is used once.
    """

    name: str
    rows: int
    kept: int
    kinds: Mapping[str, int]
    set_aside: Mapping[str, SetAside] = field(default_factory=dict)
    room: Room | None = None
    remarks: Mapping[str, Remark] = field(default_factory=dict)
    sample: Sample | None = None
    cut_rows: int = 0
    cut_completions: int = 0
    cut_tokens: int = 0
    identical: int = 0
    identical_after_cut: int = 0
    empty: int = 0
    boundary_moved: int = 0
    repeated: int = 0
    not_read: tuple[str, ...] = ()
    prompts: Lengths = NONE
    completions: Lengths = NONE
    chosen: Lengths = NONE
    rejected: Lengths = NONE
    desirable: int = 0
    undesirable: int = 0
    shared_tokens: int = 0
    separate_tokens: int = 0
    padded_tokens: int = 0
    batch_size: int = 8
    max_length: int | None = None
    unit: str = "tokens"
    eos_missing: bool = False
    mismatched_skipped: int = 0
    mismatched_lacking: int = 0
    weight: float = 1.0
    used: int | None = None

    @property
    def saving(self) -> float:
        """Share of the separate tokens that the shared-prefix layout saves; 0 to 1."""
        return 1 - self.shared_tokens / self.separate_tokens if self.separate_tokens else 0.0

    @property
    def padded_saving(self) -> float:
        """Share of the padded tokens that the shared-prefix layout saves; 0 to 1."""
        return 1 - self.shared_tokens / self.padded_tokens if self.padded_tokens else 0.0

    def render(self) -> str:
        """Return the report as plain text, without lines for counts that are 0."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        lines = [
            (f"{self.name} data", f"{_plural(self.rows, 'row')} in, {self.kept:,} kept: {kinds}")
        ]
        for reason, aside in self.set_aside.items():
            lines.append(("set aside", f"{aside.count:,}: {reason} ({_numbers(aside)})"))
        if self.room is not None:
            lines.append(("", self.room.text(self.unit)))
        if self.used is not None:
            lines.append(("used", f"{_plural(self.used, 'row')}, by weight {self.weight:g}"))
        for what, remark in self.remarks.items():
            text = f"{_plural(remark.count, 'row')}: {what}: {remark.example} ({_numbers(remark)})"
            lines.append(("audit", text))
        lines += self._remarks()
        lines += [("not read", ", ".join(self.not_read))] if self.not_read else []
        lines.append(("prompts", self._lengths(self.prompts)))
        lines.append(("completions", self._lengths(self.completions)))
        if self.chosen.count:
            means = f"mean {self.chosen.mean:.1f} chosen, {self.rejected.mean:.1f} rejected"
            lines.append(("", f"{means} {self.unit}"))
        if self.separate_tokens:
            lines.append(
                (
                    "layout",
                    f"{self.shared_tokens:,} {self.unit} with shared prefixes once, "
                    f"{self.separate_tokens:,} without sharing (saves {self.saving:.0%}), "
                    f"{self.padded_tokens:,} padded in batches of {self.batch_size} "
                    f"(saves {self.padded_saving:.0%})",
                )
            )
        width = max(len(label) for label, _ in lines)
        return "\n".join(f"{label:<{width}}  {text}".rstrip() for label, text in lines)

    def _remarks(self) -> list[tuple[str, str]]:
        lines = []
        if self.cut_completions:
            completions = _plural(self.cut_completions, "completion")
            text = f"{completions} of {_plural(self.cut_rows, 'row')} at max_length "
            text += f"{self.max_length}, by {self.cut_tokens:,} {self.unit}"
            lines.append(("cut", text))
        if self.identical or self.identical_after_cut:
            after = f" and {self.identical_after_cut:,} after the cut"
            text = _plural(self.identical, "row") + (after if self.identical_after_cut else "")
            lines.append(("identical", f"{text} with two completions the same"))
        if self.empty:
            text = f"{_plural(self.empty, 'row')} with a completion without a word"
            lines.append(("empty", text))
        if self.repeated:
            rows = _plural(self.repeated, "row")
            lines.append(("repeated", f"{rows} whose completions began with the prompt, now once"))
        if self.desirable or self.undesirable:
            text = f"{self.desirable:,} desirable, {self.undesirable:,} undesirable"
            lines.append(("labels", text))
            lines += _proposed_weights(self.desirable, self.undesirable)
        if self.mismatched_skipped:
            completions = _plural(self.mismatched_skipped, "completion")
            text = f"{completions} could not come from the row before"
            lines.append(("mismatched", text))
        if self.mismatched_lacking:
            lines.append(("mismatched", self._lacking()))
        if self.eos_missing:
            lines.append(("note", "the tokenizer has no end-of-sequence token; none was appended"))
        return lines

    def _lacking(self) -> str:
        """Return what completions without a mismatched one mean for KTO's KL estimate."""
        if self.mismatched_lacking == self.completions.count:
            few, estimate = "no completion has one", "0"
        else:
            few = f"{self.mismatched_lacking:,} of {_plural(self.completions.count, 'completion')}"
            few, estimate = f"{few} have none", "that of the others"
        return (
            f"{few}: it takes a row of another prompt with another completion; "
            f"KTO's KL estimate is {estimate}"
        )

    def _lengths(self, lengths: Lengths) -> str:
        return (
            f"{lengths.total:,} {self.unit} in {lengths.count:,}, "
            f"mean {lengths.mean:.1f}, longest {lengths.longest:,}"
        )


def _proposed_weights(desirable: int, undesirable: int) -> list[tuple[str, str]]:
    """Return the line that proposes KTO's weights, where the labels are out of balance.

    The paper (arXiv:2402.01306, Eq. 8) asks that desirable rows weigh 1 to 4/3 of undesirable ones.
    """
    if not desirable or not undesirable or 1 <= desirable / undesirable <= 4 / 3:
        return []
    if desirable > undesirable:
        name, least = "undesirable_weight", desirable / undesirable / (4 / 3)
    else:
        name, least = "desirable_weight", undesirable / desirable
    return [("weights", f"for kto, {name} {least:.2f} to {least * 4 / 3:.2f} would balance them")]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _numbers(found: SetAside | Remark) -> str:
    shown = ", ".join(map(str, found.rows))
    more = ", ..." if found.count > len(found.rows) else ""
    return f"{'row' if found.count == 1 else 'rows'} {shown}{more}"


def _shorten(text: str) -> str:
    left = len(text) - SHOWN
    if left <= 0:
        return text
    return f"{text[: SHOWN // 2]}\n[... {left:,} characters ...]\n{text[-SHOWN // 2 :]}"


def show_row(row: Mapping[str, Any], number: int, tokenizer: Any) -> Sample | None:
    """Return the text of a prepared row's tokens; None if there is nothing to read them with."""
    decode = getattr(tokenizer, "decode", None)
    if decode is None:
        return None
    texts = [decode(ids) for ids in (row["prompt_ids"], *row["completion_ids"])]
    return Sample(number, texts[0], tuple(texts[1:]), tuple(_names(row)))


def _names(row: Mapping[str, Any]) -> Sequence[str]:
    if row["kind"] == "paired":
        return ["chosen", "rejected"]
    if row["kind"] == "unpaired":
        return ["desirable" if label else "undesirable" for label in row["desirable"]]
    return [f"rank {rank}" for rank in row["ranks"]]


# All numbers of rows but their token ids; each look at a dataset takes milliseconds.
_COUNTED = [
    *("kind", "desirable", "_cut_tokens", "_identical", "_identical_after"),
    *("_empty", "_moved", "_repeated", "_layout_tokens"),
]


def count_rows(dataset: Dataset, name: str, batch_size: int) -> DataReport:
    """Return the report of prepared rows of which none was set aside."""
    columns = dataset.select_columns(_COUNTED)[:]
    kinds = np.asarray(columns["kind"])
    prompts = np.concatenate([list_lengths(p) for p in read_chunks(dataset, "prompt_ids")])
    nested = [
        (list_lengths(chunk), list_lengths(chunk.flatten()))
        for chunk in read_chunks(dataset, "completion_ids")
    ]
    numbers, lengths = (np.concatenate(parts) for parts in zip(*nested, strict=True))
    starts = np.cumsum(numbers) - numbers
    pairs = starts[kinds == "paired"]
    labels = [
        label
        for kind, row in zip(kinds, columns["desirable"], strict=True)
        if kind == "unpaired"
        for label in row
    ]
    cuts = columns["_cut_tokens"]
    texts = np.repeat(prompts, numbers) + lengths - 1
    batches = starts[::batch_size]
    per_batch = np.add.reduceat(numbers, np.arange(0, len(numbers), batch_size))
    return DataReport(
        name=name,
        rows=len(dataset),
        kept=len(dataset),
        batch_size=batch_size,
        kinds=dict(sorted(Counter(kinds.tolist()).items())),
        cut_rows=sum(any(row) for row in cuts),
        cut_completions=sum(cut > 0 for row in cuts for cut in row),
        cut_tokens=sum(cut for row in cuts for cut in row),
        identical=sum(columns["_identical"]),
        identical_after_cut=sum(columns["_identical_after"]),
        empty=sum(columns["_empty"]),
        boundary_moved=sum(columns["_moved"]),
        repeated=sum(columns["_repeated"]),
        prompts=_lengths(prompts),
        completions=_lengths(lengths),
        chosen=_lengths(lengths[pairs]),
        rejected=_lengths(lengths[pairs + 1]),
        desirable=sum(labels),
        undesirable=len(labels) - sum(labels),
        shared_tokens=sum(columns["_layout_tokens"]),
        separate_tokens=int(texts.sum()),
        padded_tokens=int((np.maximum.reduceat(texts, batches) * per_batch).sum()),
    )


def _lengths(lengths: NDArray[np.int64]) -> Lengths:
    return Lengths(len(lengths), int(lengths.sum()), int(lengths.max(initial=0)))


def remarks_of(dataset: Dataset, kept: Sequence[int], examples: int) -> dict[str, Remark]:
    """Return what was found in the rows that are kept, each with some rows and an example."""
    found: dict[str, tuple[str, list[int]]] = {}
    findings = dataset["_findings"][:]
    for row in kept:
        for finding in findings[row]:
            found.setdefault(finding["what"], (finding["example"], []))[1].append(row)
    return {
        what: Remark(len(rows), tuple(rows[:examples]), example)
        for what, (example, rows) in found.items()
    }
