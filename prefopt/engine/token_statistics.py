"""What one may want to know of each predicted token beside its log-prob, for metrics; no gradient.

The numbers need the logits of the whole vocabulary, so they are taken where a chunk of these exists
anyway, and cost about as much as the chunk's softmax. TRL 1.16 logs the same numbers at each step.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenStatistics(NamedTuple):
    """Of each of L predicted tokens, or summed over each of N completions.

    Attributes:
        entropies: Of the predicted distribution, in nats.
        hits: 1 where the token was the most probable one, else 0.
        mean_logits: Mean logit over the vocabulary, after scale and soft-cap.
    """

    entropies: Tensor
    hits: Tensor
    mean_logits: Tensor


class StatisticsCollector:
    """Takes statistics chunk by chunk while log-probs are computed, once."""

    def __init__(self) -> None:
        self._chunks: list[TokenStatistics] = []
        self._closed = False

    @torch.no_grad()
    def add(self, logits: Tensor, normalisers: Tensor, targets: Tensor, rows: int) -> None:
        """Add the next predictions.

        Args:
            logits: As the model would return them; (m, V), float32 or better.
            normalisers: Their log of the sum of exponentials; (m,).
            targets: The tokens that follow; (m,).
            rows: Predictions at a time, since an entropy takes a copy of its logits.
        """
        if self._closed:  # a chunk computed again in the backward pass
            return
        parts = zip(
            torch.split(logits, rows),
            torch.split(normalisers, rows),
            torch.split(targets, rows),
            strict=True,
        )
        for part, normaliser, target in parts:
            # log-sum-exp less the expected logit.
            probabilities = (part - normaliser[:, None]).exp_()
            entropies = normaliser - probabilities.mul_(part).sum(-1)
            hits = (part.argmax(-1) == target).to(entropies.dtype)
            self._chunks.append(TokenStatistics(entropies, hits, part.mean(-1)))

    def close(self) -> None:
        """Take nothing more."""
        self._closed = True

    def summed(self, token_index: Tensor, completion_index: Tensor, count: int) -> TokenStatistics:
        """Return each statistic summed over the tokens of each completion; (N,).

        Args:
            token_index: The place among the predictions of each completion's tokens; (L,).
            completion_index: The completion they belong to; (L,).
            count: N.
        """
        if not self._chunks:  # nothing was predicted
            nothing = torch.zeros(count, device=token_index.device)
            return TokenStatistics(nothing, nothing, nothing)
        summed = []
        for chunks in zip(*self._chunks, strict=True):
            per_token = torch.cat(chunks).index_select(0, token_index)
            zeros = per_token.new_zeros(count)
            summed.append(zeros.index_add(0, completion_index, per_token))
        return TokenStatistics(*summed)
