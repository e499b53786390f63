"""From hidden states to log-probs of given tokens, in chunks.

A tensor of (tokens, vocabulary) is the largest of a preference step: at 150k tokens of vocabulary
it is bigger than the model. Here it never exists: positions meet the LM head a chunk at a time, and
beyond a fixed budget the backward pass computes each chunk's logits again.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefopt.engine.token_statistics import StatisticsCollector

# Logits of one chunk, in bytes: large enough for full speed of the matrix product, small beside any
# model. Measured on 2 cores with a vocabulary of 8k and 49k: 16 to 128 MiB differ by less than 3 %.
CHUNK_BYTES = 64 * 2**20
# Logits that are kept for the backward pass, in bytes: to compute them again costs a quarter of the
# head's time, to keep them costs this at most.
KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LMHead:
    """The output layer of a language model and what its class does to the logits afterwards.

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
        if isinstance(self.module, nn.Linear) and _is_bare_linear(self.module):
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
        weight = getattr(self.module, "weight", None)
        vocabulary = int(weight.shape[0]) if weight is not None and weight.ndim == 2 else 2**17
        rows = _rows_of(CHUNK_BYTES, vocabulary)
        parts = [
            checkpoint(self._module_logps, part, target, collector, use_reentrant=False)
            for part, target in zip(
                torch.split(hidden, rows), torch.split(targets, rows), strict=True
            )
        ]
        if collector is not None:
            collector.close()  # chunks computed again in the backward pass are known already
        return torch.cat(parts)

    def _module_logps(
        self, hidden: Tensor, targets: Tensor, collector: StatisticsCollector | None
    ) -> Tensor:
        logits = self.transform(at_least_float32(self.module(hidden)))
        return plain_logps(logits, targets, collector)


def _is_bare_linear(module: nn.Linear) -> bool:
    """Whether a module computes ``x @ weight.T + bias`` and nothing else, with plain weights."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not hasattr(module, "parametrizations")
        and not hasattr(module.weight, "ds_id")
        and type(module.weight) is nn.Parameter
    )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def plain_logps(
    logits: Tensor, targets: Tensor, collector: StatisticsCollector | None = None
) -> Tensor:
    """Return the log-prob of each target; (M,), nats.

    Args:
        logits: (M, V), float32 or better.
        targets: Token ids; (M,).
        collector: Takes statistics of the M predictions; None for none.
    """
    normalisers = logits.logsumexp(-1)
    if collector is not None:
        collector.add(logits, normalisers, targets, _rows_of(CHUNK_BYTES, logits.shape[-1]))
    return logits.gather(-1, targets[:, None])[:, 0] - normalisers


def _rows_of(size: int, vocabulary: int) -> int:
    return max(16, size // (4 * vocabulary))


def chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    kept_rows: int | None = None,
    collector: StatisticsCollector | None = None,
) -> Tensor:
    """Return log softmax(transform(hidden @ weight.T + bias)) at the targets.

    Equal to the plain computation, with memory for some logits instead of all: those of the first
    rows are kept for the backward pass, those of the others are computed again, chunk by chunk.
    Under autocast the product runs in autocast's dtype; the softmax is float32 or better always.

    Args:
        hidden: (M, D).
        weight: (V, D); gets a gradient only if it requires one.
        targets: Token ids; (M,), int64.
        bias: (V,) or None.
        scale: Factor on the logits.
        softcap: Bound of the soft-capped logits, or None.
        chunk_rows: Rows per chunk; None for ``CHUNK_BYTES`` of logits.
        kept_rows: Rows whose logits are kept; None for ``KEPT_BYTES`` of logits.
        collector: Takes statistics of the M predictions; None for none.

    Returns:
        Log-probs; (M,), nats.
    """
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    vocabulary = weight.shape[0]
    rows = _rows_of(CHUNK_BYTES, vocabulary) if chunk_rows is None else chunk_rows
    kept = _rows_of(KEPT_BYTES, vocabulary) if kept_rows is None else kept_rows
    # Without a backward pass nothing is worth keeping.
    trained = any(part is not None and part.requires_grad for part in (hidden, weight, bias))
    head = _Head(scale, softcap, dtype, rows, kept if trained and torch.is_grad_enabled() else 0)
    result: Tensor = _ChunkedLogps.apply(  # type: ignore[no-untyped-call] # as torch ships it
        hidden, weight, bias, targets, head, collector
    )
    return result


@dataclass(frozen=True)
class _Head:
    """What maps hidden states to logits beside the weights, and by how many rows at a time."""

    scale: float
    softcap: float | None
    dtype: torch.dtype
    chunk_rows: int
    kept_rows: int

    @property
    def exact(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def blocks(self, rows: int) -> list[slice]:
        """Return the rows of each block; the first is the one that is kept, if any."""
        borders = [0, *range(min(self.kept_rows, rows), rows, self.chunk_rows), rows]
        return [slice(start, stop) for start, stop in pairwise(borders) if stop > start]

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the logits of some rows; (rows, V), float32 or better."""
        logits = at_least_float32(hidden.to(self.dtype) @ weight.T)
        if bias is not None:
            logits += bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def error(self, logits: Tensor, normalisers: Tensor, targets: Tensor) -> Tensor:
        """Turn logits, in place, into minus the gradient of each log-prob by its raw logits.

        That is softmax less the one-hot target, through soft-cap and scale; (rows, V).
        """
        if self.softcap is not None:
            slope = 1 - (logits / self.softcap).square_()
        error = logits.sub_(normalisers[:, None]).exp_()
        error.scatter_add_(1, targets[:, None], error.new_full((len(error), 1), -1.0))
        if self.softcap is not None:
            error.mul_(slope)
        return error.mul_(self.scale) if self.scale != 1.0 else error


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: _Head,
        collector: StatisticsCollector | None,
    ) -> Tensor:
        blocks = head.blocks(len(hidden))
        ctx.head, ctx.kept = head, None
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
                if head.kept_rows and block.start == 0:
                    ctx.kept = logits
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        head: _Head = ctx.head
        # What was kept is used up here; a second backward pass would compute it again.
        kept, ctx.kept = ctx.kept, None
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        cast_weight = weight.to(head.dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=head.exact) if wants_bias else None
        for block in head.blocks(len(hidden)):
            logits, kept = kept, None
            if logits is None:
                logits = head.logits(hidden[block], cast_weight, bias)
            error = head.error(logits, normalisers[block], targets[block])
            incoming = grads[0][block, None]
            if grad_bias is not None:
                # For once the incoming gradient meets (rows, V); elsewhere it scales (rows, D).
                grad_bias -= incoming[:, 0] @ error
            error = error.to(head.dtype)
            if grad_hidden is not None:
                grad_hidden[block] = (error @ cast_weight) * -incoming
            if wants_weight:
                part = (hidden[block] * -incoming).to(head.dtype)
                grad_weight = _add_product(grad_weight, error.T, part, head.exact)
            del logits, error
        if wants_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 3,
        )


def _normalise(logits: Tensor, rows: int, out: Tensor) -> None:
    """Write the log of the sum of exponentials of each row; by parts, for it takes a copy."""
    for part, result in zip(torch.split(logits, rows), torch.split(out, rows), strict=True):
        result.copy_(part.logsumexp(-1))


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, exact: torch.dtype) -> Tensor:
    """Return total + left @ right, summed over chunks in ``exact``; None is an empty sum."""
    if total is None:
        return (left @ right).to(exact)
    if left.dtype == exact:
        return total.addmm_(left, right)
    return total.add_(left @ right)
