"""A bare linear output layer over a block of rows: logits, and gradients summed over blocks."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from prefopt.engine.precision import at_least_float32


def is_bare_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
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


def rows_within(size: int, vocabulary: int) -> int:
    """Return how many rows of float32 logits fit into ``size`` bytes; at least 16."""
    return max(16, size // (4 * vocabulary))


@dataclass(frozen=True)
class LinearHead:
    """How a linear output layer computes logits, apart from its weights.

    Attributes:
        scale: Factor on the raw logits.
        softcap: Bound of the soft-capped logits, or None.
        dtype: Of the matrix products; sums and logits are float32 or better.
        chunk_rows: Rows per chunk.
        stored_rows: Rows of a first chunk with logits stored for the backward pass; 0 for none.
    """

    scale: float
    softcap: float | None
    dtype: torch.dtype
    chunk_rows: int
    stored_rows: int = 0

    @property
    def exact(self) -> torch.dtype:
        """The dtype of logits and of sums."""
        return torch.promote_types(self.dtype, torch.float32)

    def blocks(self, rows: int) -> list[slice]:
        """Return the rows of each block; the first is the one whose logits are stored, if any."""
        borders = [0, *range(min(self.stored_rows, rows), rows, self.chunk_rows), rows]
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

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return the derivative of the soft-cap at these logits; None without one."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()

    def raw_gradient(self, gradient: Tensor, slope: Tensor | None) -> Tensor:
        """Turn a gradient by logits, in place, into that by the raw logits of the layer."""
        if slope is not None:
            gradient.mul_(slope)
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


class HeadGradients:
    """Gradients by hidden states (M, D), weight (V, D) and bias (V,), as wanted.

    They are summed over blocks in float32 or better.
    """

    def __init__(
        self,
        head: LinearHead,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        wanted: tuple[bool, bool, bool],
    ) -> None:
        self._head, self._hidden, self._weight, self._bias = head, hidden, weight, bias
        self._cast_weight = weight.to(head.dtype)
        self._of_hidden = torch.empty_like(hidden) if wanted[0] else None
        self._wants_weight = wanted[1]
        self._of_weight: Tensor | None = None
        self._of_bias: Tensor | None = None
        if wanted[2] and bias is not None:
            self._of_bias = torch.zeros_like(bias, dtype=head.exact)

    def logits(self, block: slice) -> Tensor:
        """Return the logits of a block, computed again; (rows, V)."""
        return self._head.logits(self._hidden[block], self._cast_weight, self._bias)

    def add(self, block: slice, error: Tensor, incoming: Tensor) -> None:
        """Add the contribution of a block of rows.

        ``error`` is the gradient of each row's value by its raw logits, (rows, V); ``incoming``
        that of the loss by each row's value, (rows,).
        """
        if self._of_bias is not None:
            # A product with (rows, V); elsewhere the incoming gradient scales (rows, D): less work.
            self._of_bias += incoming @ error
        error = error.to(self._head.dtype)
        if self._of_hidden is not None:
            self._of_hidden[block] = (error @ self._cast_weight) * incoming[:, None]
        if self._wants_weight:
            part = (self._hidden[block] * incoming[:, None]).to(self._head.dtype)
            self._of_weight = _add_product(self._of_weight, error.T, part, self._head.exact)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients, each in the dtype of what it belongs to."""
        of_weight, of_bias = self._of_weight, self._of_bias
        if self._wants_weight and of_weight is None:
            of_weight = torch.zeros_like(self._weight)
        return (
            self._of_hidden,
            None if of_weight is None else of_weight.to(self._weight.dtype),
            None if of_bias is None or self._bias is None else of_bias.to(self._bias.dtype),
        )


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, exact: torch.dtype) -> Tensor:
    """Return total + left @ right, summed over chunks in ``exact``; None is an empty sum."""
    if total is None:
        return (left @ right).to(exact)
    if left.dtype == exact:
        return total.addmm_(left, right)
    return total.add_(left @ right)
