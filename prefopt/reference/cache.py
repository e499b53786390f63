"""Reference log-probs by content: computed once for each text, served to every run that asks.

The key of a value is exactly what determines it beside the weights: the token ids of prompt and
completion. Row numbers, masks, losses and batch sizes have no part in it, so shuffles, subsets and
other losses find what was computed. One store belongs to one reference; here it lives in memory.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm  # type: ignore[import-untyped] # ships no types

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.engine.score import Scores, layout_tensors

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Tokens of one forward pass while filling. Large enough for full speed; nothing is kept for a
# backward.
FILL_TOKENS = 8192


def _key(prompt_ids: Ints, completion_ids: Ints) -> bytes:
    """Return a digest of prompt and completion; the length keeps their border."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(len(prompt_ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(prompt_ids, dtype=np.int64).tobytes())
    digest.update(np.ascontiguousarray(completion_ids, dtype=np.int64).tobytes())
    return digest.digest()


class MemoryStore:
    """Per-token reference log-probs of completions, in memory."""

    def __init__(self) -> None:
        self._values: dict[bytes, Floats] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, prompt_ids: Ints, completion_ids: Ints) -> Floats | None:
        """Return the log-prob of each token of a completion; (n,), nats, or None if not known."""
        return self._values.get(_key(prompt_ids, completion_ids))

    def put(self, prompt_ids: Ints, completion_ids: Ints, logps: Floats) -> None:
        """Keep the log-prob of each token of a completion; (n,), nats."""
        self._values[_key(prompt_ids, completion_ids)] = logps

    def update(self, other: Mapping[bytes, Floats]) -> None:
        """Take over values that another process computed."""
        self._values.update(other)

    def subset(self, keys: Iterable[bytes]) -> dict[bytes, Floats]:
        """Return the values of some keys, to be sent to another process."""
        return {key: self._values[key] for key in keys}

    def missing(self, examples: Iterable[Example]) -> list["FillItem"]:
        """Return what is not known yet, each completion once, under the prompts they share."""
        seen: set[bytes] = set()
        items = []
        for example in examples:
            wanted = []
            for completion in example.completion_ids:
                key = _key(example.prompt_ids, completion)
                if key not in self._values and key not in seen:
                    seen.add(key)
                    wanted.append(completion)
            if wanted:
                items.append(FillItem(Example(example.prompt_ids, wanted)))
        return items


@dataclass(frozen=True)
class FillItem:
    """A prompt and those of its completions that are still to be scored."""

    example: Example

    @property
    def tokens(self) -> int:
        """Tokens it takes in a batch, at most."""
        completions = self.example.completion_ids
        return len(self.example.prompt_ids) + sum(len(completion) for completion in completions)

    @property
    def keys(self) -> list[bytes]:
        """Keys of its values."""
        return [_key(self.example.prompt_ids, ids) for ids in self.example.completion_ids]


def examples_of(rows: Iterable[Mapping[str, Any]], with_kl: bool) -> Iterator[Example]:
    """Return the prompts and completions of prepared rows, those of KTO's KL estimate included."""
    for row in rows:
        prompt = np.asarray(row["prompt_ids"], dtype=np.int64)
        completions = list(row["completion_ids"])
        if with_kl:
            completions += row["kl_completion_ids"]
        yield Example(prompt, [np.asarray(ids, dtype=np.int64) for ids in completions])


def fill(
    store: MemoryStore,
    examples: Iterable[Example],
    score: Callable[[dict[str, Any]], Scores],
    scorer: Scorer,
    *,
    tokens_per_batch: int = FILL_TOKENS,
    examples_per_batch: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], Sequence[Any]] | None = None,
    show_progress: bool = True,
    name: str = "",
) -> int:
    """Compute what a store lacks; all processes share the work and end with the same store.

    Args:
        store: Filled in place.
        examples: What will be asked of it.
        score: Maps a batch to the per-token log-probs of the reference; (L,).
        scorer: Whose layout the batches have and whose device they go to.
        tokens_per_batch: Tokens of one forward pass, at most, but at least one example.
        examples_per_batch: Examples of one forward pass, at most; None for no such limit.
        rank: Number of this process.
        world_size: How many processes share the work.
        gather: Collects an object from all processes; needed if there are several.
        show_progress: Whether to show a progress bar.
        name: What is being scored, for the progress bar.

    Returns:
        How many completions all processes computed together.
    """
    items = store.missing(examples)
    # Longest first: a batch that does not fit into memory fails at once, and not after an hour.
    items.sort(key=lambda item: -item.tokens)
    mine = items[rank::world_size]
    bar = tqdm(
        total=sum(item.tokens for item in mine),
        desc=f"Reference log-probs{f' ({name})' if name else ''}",
        unit="tok",
        unit_scale=True,
        disable=not show_progress or not items,
    )
    with bar:
        for batch in _batches(mine, tokens_per_batch, examples_per_batch):
            _score_into(store, [item.example for item in batch], score, scorer)
            bar.update(sum(item.tokens for item in batch))
    if world_size > 1:
        assert gather is not None
        computed = store.subset(key for item in mine for key in item.keys)
        for part in gather(computed):
            store.update(part)
    return sum(len(item.example.completion_ids) for item in items)


def _batches(
    items: Sequence[FillItem], tokens: int, examples: int | None
) -> Iterator[list[FillItem]]:
    batch: list[FillItem] = []
    held = 0
    for item in items:
        full = held + item.tokens > tokens or len(batch) == examples
        if batch and full:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += item.tokens
    if batch:
        yield batch


def _score_into(
    store: MemoryStore,
    examples: Sequence[Example],
    score: Callable[[dict[str, Any]], Scores],
    scorer: Scorer,
) -> None:
    batch = layout_tensors(build_layout(examples, scorer.layout))
    logps = score(scorer.to_device(batch)).per_token_logps.float().cpu().numpy()
    lengths = batch["lengths"].tolist()
    parts = iter(np.split(logps, np.cumsum(lengths)[:-1]))
    for example in examples:
        for index, completion in enumerate(example.completion_ids):
            # A token that nothing predicts is never counted; its place is kept so that masks fit.
            values = np.zeros(len(completion), dtype=np.float32)
            values[example.counted(index)] = next(parts)
            store.put(example.prompt_ids, completion, values)
