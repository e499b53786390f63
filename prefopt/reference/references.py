"""The reference of one run: what is computed once, what is asked at each step."""

import logging
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.batch import Texts
from prefopt.data.prepared import Ints, completion_keys, is_stream
from prefopt.engine import Scorer, build_layout
from prefopt.engine.divergences import Predictions
from prefopt.engine.layout import Example
from prefopt.engine.score import sum_by_completion
from prefopt.reference.fill import (
    CompletionIndex,
    Filler,
    FillOptions,
    check_finite,
    score_completions,
)
from prefopt.reference.live import ReferenceModel
from prefopt.reference.sources import Source, is_of
from prefopt.reference.store.database import Database, Floats
from prefopt.reference.store.logp_store import FileStore, LogpStore, MemoryStore
from prefopt.versions import versions

logger = logging.getLogger("prefopt")

# The facts of a fingerprint that say which model it is; the others, how it is computed.
_SAME_MODEL = ("class", "weights", "config", "quantization", "adapters", "scalings", "buffers")


class ReferenceLogps(NamedTuple):
    """Reference log-probs of the completions of a batch; nats.

    Attributes:
        logps: Of each completion; (N,).
        per_token_logps: Of each scored token; (L,).
        continuation: Of the completions of the batch's continuation, if a live reference scored
            it in the same pass; None otherwise.
        predictions: What the reference predicted at each place; None unless asked for.
    """

    logps: Tensor
    per_token_logps: Tensor
    continuation: Tensor | None = None
    predictions: Predictions | None = None


# Datasets of so many rows are remembered to be known: to read one takes a second or more.
LARGE = 20_000


class Served(NamedTuple):
    """Prepared rows whose reference log-probs are wanted.

    Attributes:
        name: What they are called.
        dataset: The rows, or a stream.
        only: Numbers of those that are wanted, in any order; None for all.
    """

    name: str
    dataset: Any
    only: Ints | None = None

    @property
    def mark(self) -> tuple[str, bytes] | None:
        """What tells them from others; None where nothing does."""
        fingerprint = getattr(self.dataset, "_fingerprint", None)
        if fingerprint is None:
            return None
        return fingerprint, b"" if self.only is None else np.sort(self.only).tobytes()


class References:
    """Serves the reference log-probs of a run.

    Args:
        source: What the reference is.
        mode: ``"cached"`` computes everything once; ``"auto"`` too, but streams when they come;
            ``"live"`` computes at each step, and keeps nothing.
        database: Keeps what is computed; None for memory.
        with_kl: Whether KTO's mismatched completions are wanted too.
        options: How it is filled.
        origin: How values are computed here, for the record.

    Attributes:
        fingerprint: Of the reference, as the main process sees it; None where its weights are not
            all in that process, or move.
        store: What was computed; None if nothing is kept.
        computed: Completions that this run has computed, all processes together.
    """

    def __init__(
        self,
        source: Source,
        mode: str,
        database: Database | None,
        *,
        with_kl: bool,
        options: FillOptions,
        origin: Mapping[str, Any],
    ) -> None:
        self._mode = mode
        self._database = database
        self._with_kl = with_kl
        self._options = options
        self._origin = dict(origin)
        self._live: ReferenceModel | None = None
        self.computed = 0
        self.switch_to(source)

    def switch_to(self, source: Source) -> None:
        """Serve another reference from now on; nothing of the one before is served any more.

        Raises:
            ValueError: If it must score at each step and cannot be loaded.
        """
        self.source = source
        self.fingerprint = self._options.processes.all(source.fingerprint())[0]
        self.store: LogpStore | None = None
        self._filler: Filler | None = None
        self._served: set[tuple[str, bytes]] = set()
        if self._mode != "live":
            self.store = self._open()
            self._filler = Filler(self.store, source.load, self._options)
        if self._mode == "live" or self._live is not None:
            self._live = source.live()

    def _open(self) -> LogpStore:
        if self._database is None:
            return MemoryStore()
        if self.fingerprint is None:
            if self._options.processes.rank == 0:
                logger.warning(
                    "reference log-probs are kept in memory, for this run only: the weights of the "
                    "reference are spread over processes, so it has no fingerprint"
                )
            return MemoryStore()
        digest, facts = self.fingerprint
        return FileStore(self._database, digest, facts, self._origin)

    @property
    def model(self) -> Any:
        """The reference as a model, if one is kept for it; None otherwise."""
        return None if self._live is None else self._live.model()

    def __str__(self) -> str:
        if self.store is None:
            return f"{self.source.description}, computed at each step"
        name = "" if self.fingerprint is None else f" [{self.fingerprint.digest[:12]}]"
        place = self.store.database.path if isinstance(self.store, FileStore) else "memory"
        how = "computed once" if self._live is None else "computed when first seen"
        return f"{self.source.description}{name}, {how}, kept in {place}"

    def prepare(self, *datasets: tuple[str, Any] | Served, at_steps: bool = False) -> int:
        """Make sure that datasets can be served; return how many completions were computed.

        Args:
            datasets: ``Served``, or a name for people and prepared rows; rows of a stream are
                computed when they are first asked for.
            at_steps: Whether only ``logps`` will ask for them, which computes what is missing. Then
                a large dataset is not read again that was known whole.

        Raises:
            ValueError: If something is missing and the reference cannot be loaded any more, or for
                a stream if the mode is ``"cached"``.
        """
        if self.store is None:
            return 0
        replaced_before = self.store.replaced
        try:
            wanted = [Served(*one) for one in datasets]
            computed = sum(self._fill(one, at_steps) for one in wanted)
            if any(self._options.processes.all(self.store.replaced and not replaced_before)):
                self._served.clear()  # what the damaged file held is not in the new one
                computed += sum(self._fill(one, at_steps) for one in wanted)
            return computed
        finally:
            self.source.release()

    def _fill(self, wanted: Served, at_steps: bool) -> int:
        name, dataset, only = wanted
        if is_stream(dataset):
            if self._mode == "cached":
                raise ValueError(
                    "reference='cached' (precompute_ref_log_probs=True) is not supported with "
                    f"IterableDataset: a stream ({name}) has no known end; use 'auto' "
                    "(leave it out), which computes rows when they are first seen, or 'live'"
                )
            self._live = self._live or self.source.live()
            return 0
        mark = wanted.mark
        if mark is not None and self._served & {mark, (mark[0], b"")}:
            return 0
        assert self._filler is not None
        kept = _kept_name(wanted, self._with_kl) if self.source.stays else None
        if mark is not None and at_steps and self._knows_all_of(kept):
            self._served.add(mark)
            return 0
        index = CompletionIndex.of(dataset, self._with_kl, only)
        computed = self._filler.fill(dataset, index, name)
        if mark is not None:
            self._served.add(mark)
        if kept is not None and isinstance(self.store, FileStore):
            self.store.remember_all_of(kept)
        self.computed += computed
        return computed

    def _knows_all_of(self, kept: str | None) -> bool:
        """Whether each process has a file that had all of a large dataset."""
        store = self.store
        knows = kept is not None and isinstance(store, FileStore) and store.knows_all_of(kept)
        return all(self._options.processes.all(knows))

    def logps(self, texts: Texts, with_predictions: bool = False) -> ReferenceLogps:
        """Return the reference log-probs of completions.

        Args:
            texts: The completions.
            with_predictions: Whether the policy's divergences from the reference are wanted; no
                store holds what they need.

        Raises:
            ValueError: If they are not known, and the reference cannot be loaded any more; or if
                predictions are asked for and the reference is not live.
        """
        tokens = texts.tokens
        if self.store is None:
            assert self._live is not None  # kept since the run began
            scorer = self._live.scorer
            if scorer.layout != tokens.name and not with_predictions:
                # Each text whole in a row of its own, as it would be computed for a store.
                tokens = scorer.to_device(build_layout(texts.examples, scorer.layout))
            context = self._options.context
            scores = self._live.score(tokens, context, with_predictions, keep_start=True)
            continuation = None if scores.continuation is None else scores.continuation.logps
            return ReferenceLogps(
                scores.logps, scores.per_token_logps, continuation, scores.predictions
            )
        if with_predictions:
            raise ValueError("a store keeps log-probs; divergences need reference='live'")
        per_token = self._stored(texts.examples).to(tokens.lengths.device)
        logps = sum_by_completion(per_token, tokens.completion_index, len(tokens.lengths))
        return ReferenceLogps(logps, per_token)

    def _stored(self, examples: Sequence[Example]) -> Tensor:
        """Return what the store knows of each scored token, and compute what it does not; (L,)."""
        assert self.store is not None
        keys = [
            key
            for example in examples
            for key in completion_keys(example.prompt_ids, example.completion_ids)
        ]
        found = [logps for logps in self.store.look_up(keys) if logps is not None]
        lacks = len(found) < len(keys)
        if self._live is not None and self._live.in_step:
            lacks = any(self._options.processes.all(lacks))
        if lacks:
            found = self._computed_now(examples, keys)
        counted = [mask for example in examples for mask in example.counted_masks()]
        scored = [logps[mask] for logps, mask in zip(found, counted, strict=True)]
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.float32), *scored]))

    def _computed_now(self, examples: Sequence[Example], keys: Sequence[bytes]) -> list[Floats]:
        """Score completions that the store does not know, and add them to it."""
        assert self.store is not None
        if self._live is None:
            logger.warning("the store lacks a completion that it had: the reference is loaded")
            self._live = self.source.load()
        # Masks are no part of what is kept: all tokens are scored.
        whole = [Example(example.prompt_ids, example.completion_ids) for example in examples]
        values = score_completions(whole, self._live, self._options.context)
        for logps in values:
            check_finite(logps, "this batch")
        self.store.add(list(zip(keys, values, strict=True)))
        self.computed += len(keys)
        return values

    # Checkpoints ----------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Return what the reference is and where it was loaded from, for a checkpoint."""
        digest, facts = self.fingerprint or (None, None)
        return {
            "version": 1,
            "description": self.source.description,
            "fingerprint": digest,
            "facts": facts,
            "loaded_from": dict(self.source.loaded_from),
        }

    def is_model(self, model: Any, autocast: str) -> bool:
        """Whether a model, as it is now, is the reference.

        Args:
            model: A model, perhaps with adapters.
            autocast: The dtype to which it casts computation, or ``"none"``.
        """
        return is_of(model, self.fingerprint, autocast)

    def is_of(self, record: Mapping[str, Any]) -> bool:
        """Whether a ``record`` is of this reference, if perhaps computed in another precision."""
        if self.fingerprint is None or record["fingerprint"] is None:
            return self.fingerprint is None and record["fingerprint"] is None
        if self.fingerprint.digest == record["fingerprint"]:
            return True
        mine, theirs = self.fingerprint.facts, record["facts"]
        return all(mine.get(part) == theirs.get(part) for part in _SAME_MODEL)


def origin_facts(scorer: Scorer, autocast: str) -> dict[str, Any]:
    """Return how values are computed in this process: what rounding may depend on."""
    parameter = next(scorer.model.parameters())
    return {
        "device": parameter.device.type,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "autocast": autocast,
        "layout": scorer.layout,
        "attention": "own" if scorer.backend is None else scorer.backend.name,
        "versions": versions("prefopt", "torch", "transformers"),
    }


def _kept_name(wanted: Served, with_kl: bool) -> str | None:
    """Return what a store remembers a large dataset by; None for one that is always read."""
    if wanted.mark is None or is_stream(wanted.dataset):
        return None
    rows = len(wanted.dataset if wanted.only is None else wanted.only)
    if rows < LARGE:
        return None
    fingerprint, only = wanted.mark
    return blake2b(f"{fingerprint} {with_kl} ".encode() + only, digest_size=16).hexdigest()
