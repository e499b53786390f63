"""Compute what a store of reference log-probs lacks, longest texts first, all processes together.

What is wanted is held as keys and numbers, 40 bytes a completion, and never as token ids: a dataset
need not fit into memory.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm  # type: ignore[import-untyped] # ships no types

from prefopt.data.prepared import KEY_BYTES, Ints, completion_keys, read_examples
from prefopt.engine import build_layout
from prefopt.engine.cpu import heap_kept
from prefopt.engine.layout import Example
from prefopt.reference.live import ReferenceModel
from prefopt.reference.processes import Processes
from prefopt.reference.store.database import Floats
from prefopt.reference.store.logp_store import LogpStore

# The completions of one row, as places in the index.
Group = NDArray[np.int64]

# Tokens of one forward pass while filling: large enough for full speed.
FILL_TOKENS = 8192

# Keys that are looked up, and values that are sent to other processes, at a time.
_CHUNK = 4096

# Rows that are read at a time where not all are wanted.
_ROWS = 1000


@dataclass(frozen=True)
class CompletionIndex:
    """The different completions of a dataset, each once; n of them.

    Attributes:
        keys: (n, 16) bytes.
        rows: Row in which each was first seen; (n,).
        places: Its place among the completions of that row; (n,).
        tokens: Tokens of prompt and completion; (n,).
        with_kl: Whether KTO's mismatched completions are among them.
    """

    keys: NDArray[np.uint8]
    rows: NDArray[np.int64]
    places: NDArray[np.int32]
    tokens: NDArray[np.int64]
    with_kl: bool

    @classmethod
    def of(cls, dataset: Dataset, with_kl: bool, only: Ints | None = None) -> "CompletionIndex":
        """Return the completions of prepared rows, with KTO's mismatched ones if ``with_kl``.

        Args:
            dataset: The rows.
            with_kl: Whether mismatched completions are wanted.
            only: Numbers of the rows that are wanted; None for all.
        """
        keys, rows, places, tokens = bytearray(), array("q"), array("i"), array("q")
        for row, example in _numbered(dataset, with_kl, only):
            completions = example.completion_ids
            keys += b"".join(completion_keys(example.prompt_ids, completions))
            rows.extend([row] * len(completions))
            places.extend(range(len(completions)))
            tokens.extend(len(example.prompt_ids) + len(ids) for ids in completions)
        joined = np.frombuffer(keys, dtype=np.uint8).reshape(-1, KEY_BYTES)
        _, first = np.unique(joined.view(f"V{KEY_BYTES}").ravel(), return_index=True)
        first.sort()
        return cls(
            joined[first],
            np.array(rows, dtype=np.int64)[first],
            np.array(places, dtype=np.int32)[first],
            np.array(tokens, dtype=np.int64)[first],
            with_kl,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def keys_at(self, indices: NDArray[np.int64]) -> list[bytes]:
        """Return some of the keys."""
        return [key.tobytes() for key in self.keys[indices]]

    def examples(self, dataset: Dataset, groups: Sequence[Group]) -> list[Example]:
        """Return completions of a dataset with their prompts: an example for each group."""
        rows = [int(self.rows[group[0]]) for group in groups]
        found = read_examples(dataset, self.with_kl, rows)
        return [
            Example(row.prompt_ids, [row.completion_ids[self.places[i]] for i in group])
            for row, group in zip(found, groups, strict=True)
        ]

    def batches(
        self, groups: Iterable[Group], most_tokens: int, most_groups: int | None = None
    ) -> Iterator[list[Group]]:
        """Yield groups for one forward pass each: one at least, or as many as the limits allow."""
        batch: list[Group] = []
        held = 0
        for group in groups:
            tokens = int(self.tokens[group].sum())
            if batch and (held + tokens > most_tokens or len(batch) == most_groups):
                yield batch
                batch, held = [], 0
            batch.append(group)
            held += tokens
        if batch:
            yield batch

    def missing(
        self,
        store: LogpStore,
        indices: NDArray[np.int64] | None = None,
        usable: bool = True,
    ) -> NDArray[np.bool_]:
        """Return which of them (m,), None for all n, a store does not have.

        Each is read, and a damaged one is missing.

        Raises:
            ValueError: If one is not finite, where they are to be ``usable``.
        """
        indices = np.arange(len(self)) if indices is None else indices
        missing = np.zeros(len(indices), dtype=bool)
        for start in range(0, len(indices), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            found = store.look_up(self.keys_at(indices[chunk]))
            for index, logps in zip(indices[chunk], found, strict=True):
                if usable and logps is not None:
                    check_finite(logps, f"row {self.rows[index]}, as the store has it,")
            missing[chunk] = [logps is None for logps in found]
        return missing


def _numbered(dataset: Dataset, with_kl: bool, only: Ints | None) -> Iterator[tuple[int, Example]]:
    """Yield rows with their numbers; ``only`` some of them, in the order of the data."""
    if only is None:
        yield from enumerate(read_examples(dataset, with_kl))
        return
    wanted = np.sort(only)
    for start in range(0, len(wanted), _ROWS):
        part = wanted[start : start + _ROWS].tolist()
        yield from zip(part, read_examples(dataset, with_kl, part), strict=True)


@dataclass(frozen=True)
class FillOptions:
    """How stores are filled.

    Attributes:
        tokens_per_batch: Tokens of one forward pass, at most, but at least one row.
        rows_per_batch: Rows of one forward pass, at most; None for no such limit.
        processes: Who shares the work.
        show_progress: Whether to show a progress bar, with an estimate of the time left.
        whose: Whose log-probs are computed, for people: ``the reference``, or ``the policy``.
        context: Makes the context of a forward pass.
    """

    tokens_per_batch: int = FILL_TOKENS
    rows_per_batch: int | None = None
    processes: Processes = field(default_factory=Processes)
    show_progress: bool = True
    whose: str = "the reference"
    context: Callable[[], Any] = nullcontext


class Filler:
    """Computes the reference log-probs that a store lacks.

    Args:
        store: Filled in place.
        load: Returns the reference; called only if something must be computed.
        options: How.
    """

    def __init__(
        self,
        store: LogpStore,
        load: Callable[[], ReferenceModel],
        options: FillOptions | None = None,
    ) -> None:
        self.store = store
        self._load = load
        self._options = options or FillOptions()
        self._processes = self._options.processes

    def fill(self, dataset: Dataset, wanted: CompletionIndex, name: str = "") -> int:
        """Compute what is missing, committing batch by batch; return how many completions.

        Every process, on whatever node, ends with a store that has all that is wanted of the
        prepared rows. The progress bar shows the name.
        """
        missing = np.array(self._processes.all(wanted.missing(self.store)))
        everywhere = np.flatnonzero(missing.all(0))
        if len(everywhere):
            self._compute(dataset, wanted, everywhere, name)
            self._processes.wait()  # for hours, if the shares or the machines are unequal
        self._exchange(wanted, np.flatnonzero(missing.any(0)))
        if missing.any():
            self.store.finish()
        return len(everywhere)

    def _compute(
        self, dataset: Dataset, wanted: CompletionIndex, indices: NDArray[np.int64], name: str
    ) -> None:
        """Score this process's share of the rows, longest first, and keep it batch by batch."""
        reference = self._load()
        mine = partial(_by_row, wanted, indices, self._processes)
        bar = tqdm(
            total=sum(int(wanted.tokens[group].sum()) for group in mine()),
            desc=f"Log-probs of {self._options.whose}{f' ({name})' if name else ''}",
            unit="tok",
            unit_scale=True,
            disable=not self._options.show_progress,
        )
        on_cpu = next(reference.scorer.model.parameters()).device.type == "cpu"
        options, passes = self._options, 0
        with bar, heap_kept() if on_cpu else nullcontext():
            for batch in wanted.batches(mine(), options.tokens_per_batch, options.rows_per_batch):
                self._compute_batch(dataset, wanted, batch, reference)
                bar.update(sum(int(wanted.tokens[group].sum()) for group in batch))
                passes += 1
            if reference.in_step:
                one = wanted.examples(dataset, [indices[-1:]])
                for _ in range(max(self._processes.all(passes)) - passes):
                    score_completions(one, reference, options.context)

    def _compute_batch(
        self,
        dataset: Dataset,
        wanted: CompletionIndex,
        groups: Sequence[Group],
        reference: ReferenceModel,
    ) -> None:
        """Score the completions of some rows and keep them: one commit."""
        indices = np.concatenate(groups)
        # Where the processes score in step, none may leave out a pass.
        keys = [] if reference.in_step else wanted.keys_at(indices)
        known = self.store.look_up(keys) if keys else [None] * len(indices)
        unknown = {int(i) for i, logps in zip(indices, known, strict=True) if logps is None}
        groups = [group[[int(i) in unknown for i in group]] for group in groups]
        groups = [group for group in groups if len(group)]
        if not groups:  # another run has computed them meanwhile
            return
        examples = wanted.examples(dataset, groups)
        values = score_completions(examples, reference, self._options.context)
        indices = np.concatenate(groups)
        for index, logps in zip(indices, values, strict=True):
            check_finite(logps, f"row {wanted.rows[index]}", self._options.whose)
        self.store.add(list(zip(wanted.keys_at(indices), values, strict=True)))

    def _exchange(self, wanted: CompletionIndex, indices: NDArray[np.int64]) -> None:
        """Send each process what its store lacks: only those that share a file lack nothing."""
        if self._processes.count == 1 or not len(indices):
            return
        has = ~np.array(self._processes.all(wanted.missing(self.store, indices)))
        lacking = np.flatnonzero(~has.all(0))
        sender = has.argmax(0)  # the first that has it
        for start in range(0, len(lacking), _CHUNK):
            part = lacking[start : start + _CHUNK]
            keys = wanted.keys_at(indices[part[sender[part] == self._processes.rank]])
            sent = list(zip(keys, self.store.look_up(keys), strict=True))
            for values in self._processes.all(sent):
                self.store.add(values)


def _by_row(
    wanted: CompletionIndex, indices: NDArray[np.int64], processes: Processes
) -> Iterator[Group]:
    """Yield the completions of this process's share of the rows by row, longest row first.

    A batch that does not fit into memory then fails at once, and not after an hour.
    """
    starts = np.flatnonzero(np.diff(wanted.rows[indices], prepend=-1))
    ends = np.append(starts[1:], len(indices))
    tokens = np.add.reduceat(wanted.tokens[indices], starts)
    order = np.argsort(-tokens, kind="stable")[processes.rank :: processes.count]
    for i in order:
        yield indices[starts[i] : ends[i]]


def check_finite(logps: Floats, where: str, whose: str = "the reference") -> None:
    """Raise for log-probs that no loss can be computed of; they are not to be kept.

    Args:
        logps: Of the tokens of a completion; (n,), nats.
        where: Whose completion it is, for people.
        whose: Who gives them.

    Raises:
        ValueError: Saying where.
    """
    if not np.isfinite(logps).all():
        raise ValueError(
            f"{whose} gives a completion of {where} a log-prob of "
            f"{logps[~np.isfinite(logps)][0]:g} for a token, which is not used: its weights hold "
            "NaN or infinite numbers, or overflow in its dtype (float16 does; use bfloat16 or "
            "float32). What the store has of it, `prefopt cache prune` deletes"
        )


def score_completions(
    examples: Sequence[Example],
    reference: ReferenceModel,
    context: Callable[[], Any] = nullcontext,
) -> list[Floats]:
    """Return the log-prob of each token of each completion, in order; (n,) each, nats.

    A token that nothing predicts, the first where there is no prompt, has 0.
    """
    scorer = reference.scorer
    batch = scorer.to_device(build_layout(examples, scorer.layout))
    per_token = reference.score(batch, context).per_token_logps
    counted = [mask for example in examples for mask in example.counted_masks()]
    ends = np.cumsum([mask.sum() for mask in counted])
    parts = np.split(per_token.float().cpu().numpy(), ends)[:-1]
    values = []
    for mask, part in zip(counted, parts, strict=True):
        whole = np.zeros(len(mask), dtype=np.float32)  # the place of a first token is kept
        whole[mask] = part
        values.append(whole)
    return values
