"""Statistics of each predicted token beside its log-prob, without gradient.

They need the logits of the whole vocabulary, so they are computed while a chunk of these exists,
each only if its name is asked for; all of them together take about as long as the chunk's softmax.
TRL 1.16 logs ``TOKEN_METRICS`` at each step; ``log_collisions`` is needed by the weights of WPO
(arXiv:2406.11827, Sec. 3.2).
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor


class TokenStatistics(NamedTuple):
    """Of each of L predicted tokens, or summed over each of N completions; None if not asked for.

    Attributes:
        entropies: Of the predicted distribution, in nats.
        hits: 1 where the token was the most probable one, else 0.
        mean_logits: Mean logit over the vocabulary, after scale and soft-cap.
        log_collisions: Log of the probability that two draws from the predicted distribution are
            the same token, that is the log of the sum of squared probabilities; nats.
    """

    entropies: Tensor | None = None
    hits: Tensor | None = None
    mean_logits: Tensor | None = None
    log_collisions: Tensor | None = None


TOKEN_METRICS = ("entropies", "hits", "mean_logits")


class StatisticsCollector:
    """Computes statistics, by their names, chunk by chunk while log-probs are computed, once.

    Raises:
        ValueError: If there is no statistic of a name.
    """

    def __init__(self, names: Collection[str] = TOKEN_METRICS) -> None:
        unknown = sorted(set(names) - _COMPUTE.keys())
        if unknown:
            raise ValueError(
                f"no statistic is called {unknown[0]!r}; there is {', '.join(_COMPUTE)}"
            )
        self._chunks: dict[str, list[Tensor]] = {name: [] for name in names}
        self._closed = False

    @torch.no_grad()
    def add(self, logits: Tensor, normalisers: Tensor, targets: Tensor, rows: int) -> None:
        """Add the next predictions.

        Logits are as the model would return them, (m, V), float32 or better; normalisers are the
        log of their sum of exponentials, (m,). Some statistics copy the logits: ``rows`` at a time.
        """
        if self._closed:  # a chunk computed again in the backward pass
            return
        parts = zip(
            torch.split(logits, rows),
            torch.split(normalisers, rows),
            torch.split(targets, rows),
            strict=True,
        )
        for part in parts:
            for name, chunks in self._chunks.items():
                chunks.append(_COMPUTE[name](*part))

    def close(self) -> None:
        """Ignore all later calls of ``add``."""
        self._closed = True

    def summed(self, token_index: Tensor, completion_index: Tensor, count: int) -> TokenStatistics:
        """Return each statistic summed over the tokens of each of ``count`` completions; (N,).

        The L tokens have a place among the predictions, and belong to a completion; (L,) both.
        """
        summed = {}
        for name, chunks in self._chunks.items():
            if not chunks:  # nothing was predicted
                summed[name] = torch.zeros(count, device=token_index.device)
                continue
            per_token = torch.cat(chunks).index_select(0, token_index)
            zeros = per_token.new_zeros(count)
            summed[name] = zeros.index_add(0, completion_index, per_token)
        return TokenStatistics(**summed)


# Each of logits (m, V), their normalisers (m,) and the tokens that follow (m,). -------------------


def _entropies(logits: Tensor, normalisers: Tensor, targets: Tensor) -> Tensor:
    # Log-sum-exp less the expected logit.
    probabilities = (logits - normalisers[:, None]).exp_()
    return normalisers - probabilities.mul_(logits).sum(-1)


def _hits(logits: Tensor, normalisers: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(-1) == targets).to(normalisers.dtype)


def _mean_logits(logits: Tensor, normalisers: Tensor, targets: Tensor) -> Tensor:
    return logits.mean(-1)


def _log_collisions(logits: Tensor, normalisers: Tensor, targets: Tensor) -> Tensor:
    # It is at least -log V, so squares that underflow do not matter.
    probabilities = (logits - normalisers[:, None]).exp_()
    norms: Tensor = torch.linalg.vector_norm(probabilities, dim=-1)
    return 2 * norms.log()


_COMPUTE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "entropies": _entropies,
    "hits": _hits,
    "mean_logits": _mean_logits,
    "log_collisions": _log_collisions,
}
