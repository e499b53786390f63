"""The reference of one run: what is computed before training, and what is asked at each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from prefopt.data.inspection import is_stream
from prefopt.engine import Scorer
from prefopt.engine.score import sum_by_completion
from prefopt.reference.cache import MemoryStore
from prefopt.reference.strategies import AdapterOff, FrozenCopy, LiveReference, ReferenceModel


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
        scorer: Scores with the policy, which has not been trained yet.
        given: A reference other than the policy as it is now; None for that.
        datasets: Prepared data of the run, by name; names may repeat.
        mode: ``"auto"`` computes what it can before training; ``"cached"`` insists; ``"live"``
            computes at each step.
        fill: Computes the log-probs of a dataset into a store: ``fill(store, dataset, reference,
            name)``.

    Attributes:
        store: What was computed before training; None if nothing was.
        description: What the reference is and when it is computed, for people.

    Raises:
        ValueError: If ``"cached"`` is insisted on for a stream.
    """

    def __init__(
        self,
        scorer: Scorer,
        given: LiveReference | None,
        datasets: Sequence[tuple[str, Any]],
        mode: str,
        fill: Callable[[MemoryStore, Any, LiveReference, str], None],
    ) -> None:
        streams = [name for name, data in datasets if is_stream(data) or mode == "live"]
        kept = [(name, data) for name, data in datasets if not (is_stream(data) or mode == "live")]
        if streams and mode == "cached":
            raise ValueError(
                f"reference='cached' cannot hold a stream ({', '.join(streams)}); "
                "use 'auto' or 'live'"
            )
        if streams and given is None:
            given = FrozenCopy(scorer)
        reference = given or ReferenceModel(scorer, "the policy as it was given")
        self.store = MemoryStore() if kept else None
        if self.store is not None:
            for name, data in kept:
                fill(self.store, data, reference, name)
        # An adapter that is switched off costs nothing to keep; another model or a copy does.
        self._live = given if streams or isinstance(given, AdapterOff) else None
        how = "computed once" if kept else "computed at each step"
        self.description = f"{reference.description}, {how}"

    def logps(self, batch: Mapping[str, Any], context: Callable[[], Any]) -> ReferenceLogps:
        """Return the reference log-probs of the completions of a batch.

        Args:
            batch: A collated batch; ``ref_per_token_logps`` (L,) are those that the store knew.
            context: Makes the context of a forward pass.

        Raises:
            ValueError: If they are not known, and the reference is gone.
        """
        logps, continuation = _served(batch), _served(batch.get("continuation"))
        if logps is not None and (continuation is not None or "continuation" not in batch):
            return ReferenceLogps(logps, continuation)
        if self._live is None:
            raise ValueError(
                "this data was not known when the trainer was made, and the initial policy is "
                "gone, so it has no reference log-probs; pass it as eval_dataset when making the "
                "trainer, or use reference='live'"
            )
        scores = self._live.score(batch, context)
        more = scores.continuation
        return ReferenceLogps(scores.logps, None if more is None else more.logps)


def _served(batch: Mapping[str, Any] | None) -> Tensor | None:
    """Return the log-probs that the store knew when the batch was made; (N,)."""
    if batch is None or "ref_per_token_logps" not in batch:
        return None
    per_token = batch["ref_per_token_logps"]
    return sum_by_completion(per_token, batch["completion_index"], len(batch["lengths"]))
