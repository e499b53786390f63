"""The reference of one run: what is computed once, what is asked at each step."""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from prefopt.data.inspection import is_stream
from prefopt.engine import Scorer
from prefopt.engine.score import sum_by_completion
from prefopt.reference.database import Database
from prefopt.reference.fill import Filler, FillOptions, Wanted
from prefopt.reference.fingerprint import Fingerprint
from prefopt.reference.sources import Source
from prefopt.reference.store import FileStore, LogpStore, MemoryStore
from prefopt.reference.strategies import LiveReference

logger = logging.getLogger("prefopt")


class ReferenceLogps(NamedTuple):
    """Reference log-probs of the completions of a batch; nats.

    Attributes:
        logps: Of each completion; (N,).
        continuation: The same of the batch's continuation; None where it has none.
    """

    logps: Tensor
    continuation: Tensor | None


class References:
    """Serves the reference log-probs of a run.

    Args:
        source: What the reference is.
        mode: ``"auto"`` computes what it can once; ``"cached"`` insists; ``"live"`` computes at
            each step, and keeps nothing.
        database: Keeps what is computed; None for memory.
        with_kl: Whether KTO's mismatched completions are wanted too.
        options: How it is filled.
        origin: How values are computed here, for the record.

    Attributes:
        source: What the reference is.
        fingerprint: Of the reference; None where its weights are not all in this process.
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
        self.source = source
        self._mode = mode
        self._with_kl = with_kl
        self._context = options.context
        self._filler: Filler | None = None
        self._live: LiveReference | None = source.keep() if mode == "live" else None
        self._served: set[str] = set()
        self.computed = 0
        self.fingerprint: Fingerprint | None = None
        self.store: LogpStore | None = None
        if mode != "live":
            self.fingerprint = source.fingerprint()
            self.store = self._open(database, origin)
            self._filler = Filler(self.store, source.load, options)

    def _open(self, database: Database | None, origin: Mapping[str, Any]) -> LogpStore:
        if database is None:
            return MemoryStore()
        if self.fingerprint is None:
            logger.warning(
                "reference log-probs are kept in memory, for this run only: the weights of the "
                "reference are spread over processes, so it has no fingerprint"
            )
            return MemoryStore()
        return FileStore(database, self.fingerprint.digest, self.fingerprint.facts, origin)

    def __str__(self) -> str:
        if self.store is None:
            return f"{self.source.description}, computed at each step"
        name = "" if self.fingerprint is None else f" [{self.fingerprint.digest[:12]}]"
        place = self.store.database.path if isinstance(self.store, FileStore) else "memory"
        how = "computed once" if self._live is None else "computed when first seen"
        return f"{self.source.description}{name}, {how}, kept in {place}"

    def policy_moves(self) -> None:
        """Called before training: from now on the policy is no longer what it was given as."""
        self.source.moved = True

    def prepare(self, dataset: Any, name: str) -> int:
        """Make sure that a dataset can be served; return how many completions were computed.

        Args:
            dataset: Prepared rows; of a stream, what it brings will be computed when it comes.
            name: Of the dataset, for people.

        Raises:
            ValueError: If something is missing and the reference cannot be had again, or if
                ``"cached"`` was insisted on for a stream.
        """
        if self.store is None:
            return 0
        if is_stream(dataset):
            if self._mode == "cached":
                raise ValueError(
                    f"reference='cached' cannot hold a stream ({name}); use 'auto' or 'live'"
                )
            self._live = self._live or self.source.keep()
            return 0
        mark = getattr(dataset, "_fingerprint", None)
        if mark is not None and mark in self._served:
            return 0
        assert self._filler is not None
        try:
            computed = self._filler.fill(dataset, Wanted.of(dataset, self._with_kl), name)
        finally:
            self.source.release()
        if mark is not None:
            self._served.add(mark)
        self.computed += computed
        return computed

    def logps(self, batch: Mapping[str, Any]) -> ReferenceLogps:
        """Return the reference log-probs of the completions of a batch.

        Args:
            batch: A collated batch; ``ref_per_token_logps`` (L,) are those that the store knew
                when it was made, ``unknown`` is what it did not know.

        Raises:
            ValueError: If they are not known, and the reference cannot be had again.
        """
        if self.store is None:
            assert self._live is not None  # kept since the run began
            scores = self._live.score(batch, self._context)
            more = scores.continuation
            return ReferenceLogps(scores.logps, None if more is None else more.logps)
        continuation = batch.get("continuation")
        return ReferenceLogps(
            self._served_logps(batch),
            None if continuation is None else self._served_logps(continuation),
        )

    def _served_logps(self, batch: Mapping[str, Any]) -> Tensor:
        if "ref_per_token_logps" in batch:
            per_token = batch["ref_per_token_logps"]
        else:
            per_token = self._computed_now(batch["unknown"])
        return sum_by_completion(per_token, batch["completion_index"], len(batch["lengths"]))

    def _computed_now(self, unknown: Mapping[str, Any]) -> Tensor:
        """Score completions that a stream brought, and remember them for when they come again."""
        assert self.store is not None
        if self._live is None:
            logger.warning("the store lacks a completion that it had: the reference is loaded")
            self._live, _ = self.source.load()
        per_token = self._live.score(unknown, self._context).per_token_logps
        flat = per_token.float().cpu().numpy()
        keys = [key.tobytes() for key in unknown["keys"].cpu().numpy()]
        parts = np.split(flat, np.cumsum(unknown["lengths"].cpu().numpy())[:-1])
        sizes = unknown["whole_lengths"].tolist()
        self.store.add(
            [
                (key, np.pad(part, (size - len(part), 0)))
                for key, part, size in zip(keys, parts, sizes, strict=True)
            ]
        )
        self.computed += len(keys)
        return per_token[unknown["selected"]]


def origin_facts(scorer: Scorer, autocast: str) -> dict[str, Any]:
    """Return how values are computed in this process: what rounding may depend on."""
    parameter = next(scorer.model.parameters())
    return {
        "device": parameter.device.type,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "autocast": autocast,
        "layout": scorer.layout,
        "attention": "own" if scorer.backend is None else scorer.backend.name,
        "versions": {name: version(name) for name in ("prefopt", "torch", "transformers")},
    }
