"""From hidden states to log-probs of given tokens, in chunks.

A tensor of (tokens, vocabulary) is the largest of a preference step: with a vocabulary of 150k it
is larger than the model. It is never built here: the LM head is applied to a chunk of positions at
a time, and beyond a fixed budget the backward pass computes each chunk's logits again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefopt.engine.linear_head import HeadGradients, LinearHead, is_bare_linear, rows_within
from prefopt.engine.partitioned import whole_shape
from prefopt.engine.precision import at_least_float32, computing_dtype
from prefopt.engine.token_statistics import StatisticsCollector

# Logits of one chunk, in bytes: large enough for full speed of the matrix product, small beside any
# model. Measured on 2 cores with a vocabulary of 8k and 49k: 16 to 128 MiB differ by less than 3 %.
CHUNK_BYTES = 64 * 2**20
# Logits that are stored for the backward pass, in bytes: computing them again takes a quarter of
# the head's time.
STORED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LMHead:
    """The output layer of a language model, and how its class transforms the logits.

    Attributes:
        module: Maps hidden states (..., D) to raw logits (..., V).
        scale: Factor on the raw logits (Cohere, Granite).
        softcap: ``softcap * tanh(logits / softcap)`` afterwards (Gemma 2); None for none.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> "LMHead":
        """Return the head of a causal language model, read from its modules and configuration.

        Raises:
            ValueError: If the model has no output embeddings.
        """
        module = model.get_output_embeddings()
        if module is None:
            raise ValueError(
                f"{type(model).__name__} has no output embeddings to score tokens with"
            )
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        if getattr(config, "logits_scaling", None):
            scale = scale / config.logits_scaling
        return cls(module, float(scale), getattr(config, "final_logit_softcapping", None))

    def transform(self, logits: Tensor) -> Tensor:
        """Return the logits the model would return, given those of the bare output layer."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def rows_within(self, size: int) -> int:
        """Return how many rows of logits fit into so many bytes."""
        weight = getattr(self.module, "weight", None)
        shape = () if weight is None else whole_shape(weight)
        vocabulary = int(shape[0]) if len(shape) == 2 else 2**17
        return rows_within(size, vocabulary)

    def logps(
        self, hidden: Tensor, targets: Tensor, collector: StatisticsCollector | None = None
    ) -> Tensor:
        """Return the log-prob of each target given the hidden state that predicts it.

        Args:
            hidden: Hidden states after the final norm; (M, D).
            targets: Token ids; (M,).
            collector: Takes statistics of the M predictions; None for none.

        Returns:
            Log-probs; (M,), nats, float32 or better.
        """
        if is_bare_linear(self.module):
            return chunked_logps(
                hidden,
                self.module.weight,
                targets,
                bias=self.module.bias,
                scale=self.scale,
                softcap=self.softcap,
                collector=collector,
            )
        # Quantised, adapted (LoRA) or offloaded heads: their own forward, recomputed chunk by
        # chunk.
        rows = self.rows_within(CHUNK_BYTES)
        parts = [
            checkpoint(self._module_logps, part, target, collector, use_reentrant=False)
            for part, target in zip(
                torch.split(hidden, rows), torch.split(targets, rows), strict=True
            )
        ]
        if collector is not None:
            collector.close()  # the backward pass computes chunks again
        return torch.cat(parts)

    def _module_logps(
        self, hidden: Tensor, targets: Tensor, collector: StatisticsCollector | None
    ) -> Tensor:
        logits = self.transform(at_least_float32(self.module(hidden)))
        return plain_logps(logits, targets, collector)


def plain_logps(
    logits: Tensor, targets: Tensor, collector: StatisticsCollector | None = None
) -> Tensor:
    """Return the log-prob of each target (M,) by its logits (M, V); (M,), nats."""
    normalisers = logits.logsumexp(-1)
    if collector is not None:
        collector.add(logits, normalisers, targets, rows_within(CHUNK_BYTES, logits.shape[-1]))
    return logits.gather(-1, targets[:, None])[:, 0] - normalisers


def chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    stored_rows: int | None = None,
    collector: StatisticsCollector | None = None,
) -> Tensor:
    """Return log softmax(transform(hidden @ weight.T + bias)) at the targets.

    Equal to the plain computation, with memory for some logits instead of all: those of the first
    rows are stored for the backward pass, those of the others are computed again, chunk by chunk.
    Under autocast the product runs in autocast's dtype; the softmax is float32 or better always.

    Args:
        hidden: (M, D).
        weight: (V, D); gets a gradient only if it requires one.
        targets: Token ids; (M,), int64.
        bias: (V,) or None.
        scale: Factor on the logits.
        softcap: Bound of the soft-capped logits, or None.
        chunk_rows: Rows per chunk; None for ``CHUNK_BYTES`` of logits.
        stored_rows: Rows whose logits are stored; None for ``STORED_BYTES`` of logits.
        collector: Takes statistics of the M predictions; None for none.

    Returns:
        Log-probs; (M,), nats.
    """
    dtype = computing_dtype(hidden)
    vocabulary = weight.shape[0]
    rows = rows_within(CHUNK_BYTES, vocabulary) if chunk_rows is None else chunk_rows
    stored = rows_within(STORED_BYTES, vocabulary) if stored_rows is None else stored_rows
    # Without a backward pass no logits are used again.
    trained = any(part is not None and part.requires_grad for part in (hidden, weight, bias))
    stored = stored if trained and torch.is_grad_enabled() else 0
    head = LinearHead(scale, softcap, dtype, rows, stored)
    result: Tensor = _ChunkedLogps.apply(  # type: ignore[no-untyped-call] # as torch ships it
        hidden, weight, bias, targets, head, collector
    )
    return result


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: LinearHead,
        collector: StatisticsCollector | None,
    ) -> Tensor:
        blocks = head.blocks(len(hidden))
        ctx.head, ctx.stored = head, None
        normalisers = hidden.new_empty(len(hidden), dtype=head.exact)
        logps = torch.empty_like(normalisers)
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(head.dtype)
            for block in blocks:
                logits = head.logits(hidden[block], cast_weight, bias)
                _normalise(logits, head.chunk_rows, out=normalisers[block])
                logps[block] = logits.gather(1, targets[block, None])[:, 0] - normalisers[block]
                if collector is not None:
                    collector.add(logits, normalisers[block], targets[block], head.chunk_rows)
                if head.stored_rows and block.start == 0:
                    ctx.stored = logits
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        head: LinearHead = ctx.head
        # The stored logits are overwritten here; a second backward pass computes them again.
        stored, ctx.stored = ctx.stored, None
        gradients = HeadGradients(head, hidden, weight, bias, ctx.needs_input_grad[:3])
        for block in head.blocks(len(hidden)):
            logits, stored = stored, None
            if logits is None:
                logits = gradients.logits(block)
            error = _error(head, logits, normalisers[block], targets[block])
            gradients.add(block, error, -grads[0][block])
            del logits, error
        return *gradients.result(), None, None, None


def _error(head: LinearHead, logits: Tensor, normalisers: Tensor, targets: Tensor) -> Tensor:
    """Turn logits, in place, into minus the gradient of each log-prob by its raw logits.

    That is softmax less the one-hot target, through soft-cap and scale; (rows, V).
    """
    slope = head.slope(logits)
    error = logits.sub_(normalisers[:, None]).exp_()
    error.scatter_add_(1, targets[:, None], error.new_full((len(error), 1), -1.0))
    return head.raw_gradient(error, slope)


def _normalise(logits: Tensor, rows: int, out: Tensor) -> None:
    """Write the log of the sum of exponentials of each row; by parts, since torch copies them."""
    for part, result in zip(torch.split(logits, rows), torch.split(out, rows), strict=True):
        result.copy_(part.logsumexp(-1))
