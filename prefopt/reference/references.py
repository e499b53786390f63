"""The reference of one run: what is computed once, what is asked at each step."""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.data.prepared import is_stream
from prefopt.engine import Scorer
from prefopt.engine.divergences import Predictions
from prefopt.engine.score import sum_by_completion
from prefopt.reference.fill import CompletionIndex, Filler, FillOptions
from prefopt.reference.live import LiveReference
from prefopt.reference.sources import Source
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FileStore, LogpStore, MemoryStore

logger = logging.getLogger("prefopt")

# The facts of a fingerprint that say which model it is; the others, how it is computed.
_SAME_MODEL = ("class", "weights", "config", "quantization", "adapters", "scalings")


class ReferenceLogps(NamedTuple):
    """Reference log-probs of the completions of a batch; nats.

    Attributes:
        logps: Of each completion; (N,).
        continuation: The same of the batch's continuation; None where it has none.
        per_token_logps: Of each scored token; (L,).
        predictions: What the reference predicted at each place; None unless asked for.
    """

    logps: Tensor
    continuation: Tensor | None
    per_token_logps: Tensor
    predictions: Predictions | None = None


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
        self._live: LiveReference | None = None
        self.computed = 0
        self.become(source)
        if mode == "live":
            self._live = source.keep()

    def become(self, source: Source) -> None:
        """Serve another reference from now on: nothing of what was served stays.

        Args:
            source: What the reference is.

        Raises:
            ValueError: If it is asked at each step and cannot be had.
        """
        self.source = source
        self.fingerprint = self._options.processes.all(source.fingerprint())[0]
        self.store: LogpStore | None = None
        self._filler: Filler | None = None
        self._served: set[str] = set()
        if self._mode != "live":
            self.store = self._open()
            self._filler = Filler(self.store, source.load, self._options)
        if self._live is not None:
            self._live = source.keep()

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

    def prepare(self, *datasets: tuple[str, Any]) -> int:
        """Make sure that datasets can be served; return how many completions were computed.

        Args:
            datasets: A name for people, and prepared rows; of a stream, what it brings will be
                computed when it comes.

        Raises:
            ValueError: If something is missing and the reference cannot be had again, or if
                ``"cached"`` was insisted on for a stream.
        """
        if self.store is None:
            return 0
        try:
            return sum(self._fill(name, dataset) for name, dataset in datasets)
        finally:
            self.source.release()

    def _fill(self, name: str, dataset: Any) -> int:
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
        computed = self._filler.fill(dataset, CompletionIndex.of(dataset, self._with_kl), name)
        if mark is not None:
            self._served.add(mark)
        self.computed += computed
        return computed

    def logps(self, batch: Mapping[str, Any], with_predictions: bool = False) -> ReferenceLogps:
        """Return the reference log-probs of the completions of a batch.

        Args:
            batch: A collated batch; ``ref_per_token_logps`` (L,) are those that the store knew
                when it was made, ``unknown`` is what it did not know.
            with_predictions: Whether the policy's divergences from the reference are wanted; no
                store holds what they need.

        Raises:
            ValueError: If they are not known, and the reference cannot be had again; or if
                predictions are asked for of what a store keeps.
        """
        if self.store is None:
            assert self._live is not None  # kept since the run began
            scores = self._live.score(batch, self._options.context, with_predictions)
            more = scores.continuation
            further = None if more is None else more.logps
            return ReferenceLogps(scores.logps, further, scores.per_token_logps, scores.predictions)
        if with_predictions:
            raise ValueError("a store keeps log-probs; divergences need reference='live'")
        logps, per_token = self._looked_up(batch)
        continuation = batch.get("continuation")
        further = None if continuation is None else self._looked_up(continuation)[0]
        return ReferenceLogps(logps, further, per_token)

    def _looked_up(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return log-probs of completions (N,) and of their tokens (L,)."""
        if "ref_per_token_logps" in batch:
            per_token = batch["ref_per_token_logps"]
        else:
            per_token = self._found_late(batch["unknown"])
        completions = len(batch["lengths"])
        return sum_by_completion(per_token, batch["completion_index"], completions), per_token

    def _found_late(self, unknown: Mapping[str, Any]) -> Tensor:
        """Return what the collator did not find: looked up here and now, or else computed.

        A worker process that made the batch ahead of its time, or that has a copy of a store in
        memory, knows less than this process does.
        """
        assert self.store is not None
        keys = [key.tobytes() for key in unknown["keys"].cpu().numpy()]
        known = [logps for logps in self.store.look_up(keys) if logps is not None]
        if len(known) < len(keys):
            return self._computed_now(unknown, keys)[unknown["selected"]]
        scored = unknown["lengths"].tolist()
        parts = [logps[len(logps) - count :] for logps, count in zip(known, scored, strict=True)]
        served = torch.from_numpy(np.concatenate(parts)).to(unknown["selected"].device)
        return served[unknown["selected"]]

    def _computed_now(self, unknown: Mapping[str, Any], keys: Sequence[bytes]) -> Tensor:
        """Score completions that a stream brought, and remember them for when they come again."""
        assert self.store is not None
        if self._live is None:
            logger.warning("the store lacks a completion that it had: the reference is loaded")
            self._live, _ = self.source.load()
        per_token = self._live.score(unknown, self._options.context).per_token_logps
        ends = np.cumsum(unknown["lengths"].cpu().numpy())
        parts = np.split(per_token.float().cpu().numpy(), ends)[:-1]
        sizes = unknown["whole_lengths"].tolist()
        self.store.add(
            [
                (key, np.pad(part, (size - len(part), 0)))  # a first token that nothing predicts
                for key, part, size in zip(keys, parts, sizes, strict=True)
            ]
        )
        self.computed += len(keys)
        return per_token

    # Checkpoints ----------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Return what the reference is and how to get it again, for a checkpoint to keep."""
        digest, facts = self.fingerprint or (None, None)
        return {
            "version": 1,
            "description": self.source.description,
            "fingerprint": digest,
            "facts": facts,
            "loaded_from": dict(self.source.loaded_from),
        }

    def is_of(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of this reference, if perhaps computed in another precision.

        Args:
            record: What ``record`` returned in the run that is resumed.
        """
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
        "versions": {name: version(name) for name in ("prefopt", "torch", "transformers")},
    }
