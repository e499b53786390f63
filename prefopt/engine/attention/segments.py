"""The ``segments`` backend: any device, any dtype, no kernel of its own.

Each segment attends to its path (its ancestors and itself) by one call of scaled dot-product
attention. Short texts of about one size are one call, instead of many small ones.

On a CPU the calls of a layer are one autograd function around torch's flash kernel: joined keys and
values are not stored but joined again in the backward pass, and key-value heads are never repeated
for the query heads that share them. On the 135M benchmark that saves a seventh of the memory of a
step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from prefopt.engine.attention.plan import AttentionOptions, AttentionPlan

# Texts of up to this many tokens, branches included, are batched into one call per size. Measured
# on 2 cores: the overhead of a call is 0.1 ms, as long as a masked square of this many tokens.
BLOCK_TOKENS = 96
_BLOCK_STEP = 16

# Queries of one call, at most: the kernel computes all keys up to the last that any query sees.
CALL_TOKENS = 128


def attend_by_segments(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, options: AttentionOptions
) -> Tensor:
    """Attend segment by segment; see ``prefopt.engine.attention.plan.Attend``."""
    plain = options.softcap is None and options.sinks is None and options.dropout == 0.0
    if plain and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        calls = plan.prepare(_calls, options.window, query.dtype)
        output: Tensor = _FlashOnCPU.apply(  # type: ignore[no-untyped-call] # as torch ships it
            query, key, value, calls, options.scaling
        )
        return output
    return _attend_each(query, key, value, plan, options)


# One autograd function of flash calls -----------------------------------------------------------
#
# Query heads that share a key-value head become the heads of the kernel, and the key-value heads
# its batch, where one key serves a whole group by a stride of 0. So within this part queries and
# outputs are (kv_heads, groups, T, d), keys and values (kv_heads, S, d).


@dataclass(frozen=True)
class SegmentCall:
    """Attention of some tokens of a segment to its path.

    Attributes:
        queries: Its tokens, among the queries.
        keys: The segments that they see, among the keys; their own tokens are the last.
        runs: The same, with adjacent slices joined.
        mask: Added to the scores; (queries, keys), or None for a causal square.
    """

    queries: slice
    keys: tuple[slice, ...]
    runs: tuple[slice, ...]
    mask: Tensor | None

    def query(self, tensor: Tensor) -> Tensor:
        """Return the queries of (kv_heads, groups, T, d) as (kv_heads, groups, q, d)."""
        return tensor[:, :, self.queries]

    def gradient(self, tensor: Tensor) -> Tensor:
        """Return the incoming gradient of the queries, shaped as by ``query``."""
        return self.query(tensor)

    def key(self, tensor: Tensor) -> Tensor:
        """Return the keys of (kv_heads, S, d) as (kv_heads, k, d)."""
        parts = [tensor[:, run] for run in self.runs]
        return _join(parts, dim=1)

    def kernel_mask(self, kv_heads: int) -> Tensor | None:
        """Return the mask in the shape of the kernel's argument."""
        return self.mask

    def put(self, into: Tensor, values: Tensor) -> None:
        """Write values of the queries."""
        into[:, :, self.queries] = values

    def collect(self, into: Tensor, values: Tensor) -> None:
        """Write the gradients of its own keys, and add to those of the segments before it."""
        start = 0
        for part in self.keys:
            stop = start + part.stop - part.start
            if part is self.keys[-1]:
                into[:, part] = values[:, start:stop]
            else:
                into[:, part] += values[:, start:stop]
            start = stop


@dataclass(frozen=True)
class BlockCall:
    """Attention of several short texts of about one size, as a padded batch of G.

    Attributes:
        queries: Place of each query among the queries; (G, q), any place for padding.
        keys: The same of the keys; (G, k).
        real_queries: Which of the G * q are not padding.
        real_keys: Which of the G * k are not padding.
        mask: Added to the scores; (G, 1, q, k).
    """

    queries: Tensor
    keys: Tensor
    real_queries: Tensor
    real_keys: Tensor
    mask: Tensor

    def query(self, tensor: Tensor) -> Tensor:
        """Return the queries of (kv_heads, groups, T, d) as (G * kv_heads, groups, q, d)."""
        return tensor[:, :, self.queries].permute(2, 0, 1, 3, 4).flatten(0, 1)

    def gradient(self, tensor: Tensor) -> Tensor:
        """Return the incoming gradient of the queries, shaped as by ``query``; 0 for padding."""
        real = self.real_queries.view(self.queries.shape)
        return self.query(tensor) * real.repeat_interleave(tensor.shape[0], 0)[:, None, :, None]

    def key(self, tensor: Tensor) -> Tensor:
        """Return the keys of (kv_heads, S, d) as (G * kv_heads, k, d)."""
        return tensor[:, self.keys].transpose(0, 1).flatten(0, 1)

    def kernel_mask(self, kv_heads: int) -> Tensor | None:
        """Return the mask in the shape of the kernel's argument; (G * kv_heads, 1, q, k)."""
        return self.mask if kv_heads == 1 else self.mask.repeat_interleave(kv_heads, dim=0)

    def put(self, into: Tensor, values: Tensor) -> None:
        """Write values of the queries; (G * kv_heads, groups, q, d)."""
        kv_heads, groups, _, width = into.shape
        by_head = values.view(-1, kv_heads, *values.shape[1:]).permute(1, 2, 0, 3, 4)
        flat = by_head.reshape(kv_heads, groups, -1, width)[:, :, self.real_queries]
        into.index_copy_(2, self.queries.flatten()[self.real_queries], flat)

    def collect(self, into: Tensor, values: Tensor) -> None:
        """Write gradients of the keys; (G * kv_heads, k, d). No other call has these keys."""
        kv_heads, _, width = into.shape
        by_head = values.view(-1, kv_heads, *values.shape[1:]).transpose(0, 1)
        flat = by_head.reshape(kv_heads, -1, width)[:, self.real_keys]
        into.index_copy_(1, self.keys.flatten()[self.real_keys], flat)


# A segment's call comes after those of its ancestors.
Calls = Sequence[SegmentCall | BlockCall]


class _FlashOnCPU(torch.autograd.Function):
    """All attention calls of a layer; stores inputs, outputs and normalisers for the backward."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: Calls, scale: float | None
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        # In the memory layout that the model needs next: (1, T, heads, d).
        output = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        kv_heads = key.shape[1]
        queries, outputs = _by_group(query, kv_heads), _by_group(output, kv_heads)
        normalisers = []
        for call in calls:
            part, normaliser = _flash(call, queries, key[0], value[0], scale)
            call.put(outputs, part)
            normalisers.append(normaliser)
        ctx.calls, ctx.scale = calls, scale
        ctx.save_for_backward(query, key, value, output, *normalisers)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *normalisers = ctx.saved_tensors
        kv_heads = key.shape[1]
        # Each query belongs to one call, and the first call that has a key writes its gradient,
        # except for cached keys, which are no call's own.
        start = torch.empty_like if key.shape[2] == query.shape[2] else torch.zeros_like
        grad_query, grad_key, grad_value = (
            start(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)
        )
        grad_queries = _by_group(grad_query, kv_heads)
        of_queries = [_by_group(tensor, kv_heads) for tensor in (grads[0], query, output)]
        for call, normaliser in zip(ctx.calls, normalisers, strict=True):
            parts = _flash_backward(call, of_queries, key[0], value[0], normaliser, ctx.scale)
            call.put(grad_queries, parts[0])
            call.collect(grad_key[0], parts[1])
            call.collect(grad_value[0], parts[2])
        return grad_query, grad_key, grad_value, None, None


def _by_group(tensor: Tensor, kv_heads: int) -> Tensor:
    """Return (1, heads, T, d) seen as (kv_heads, groups, T, d)."""
    _, heads, tokens, width = tensor.shape
    return tensor[0].view(kv_heads, heads // kv_heads, tokens, width)


def _flash(
    call: SegmentCall | BlockCall, query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Return the output of a call, and its normalisers for the backward pass."""
    groups = query.shape[1]
    output, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        call.query(query),
        _for_groups(call.key(key), groups),
        _for_groups(call.key(value), groups),
        0.0,
        call.mask is None,
        attn_mask=call.kernel_mask(key.shape[0]),
        scale=scale,
    )
    return output, normaliser


def _flash_backward(
    call: SegmentCall | BlockCall,
    of_queries: Sequence[Tensor],
    key: Tensor,
    value: Tensor,
    normaliser: Tensor,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a call by its queries, keys and values (kv_heads, S, d).

    ``of_queries``: incoming gradient, queries, and output, (kv_heads, groups, T, d) each.
    """
    grad, query, output = of_queries
    groups = query.shape[1]
    by_query, by_key, by_value = (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            call.gradient(grad),
            call.query(query),
            _for_groups(call.key(key), groups),
            _for_groups(call.key(value), groups),
            call.query(output),
            normaliser,
            0.0,
            call.mask is None,
            attn_mask=call.kernel_mask(key.shape[0]),
            scale=scale,
        )
    )
    return by_query, _over_groups(by_key), _over_groups(by_value)


def _for_groups(tensor: Tensor, groups: int) -> Tensor:
    """(B, k, d) -> (B, groups, k, d), without a copy."""
    return tensor[:, None].expand(-1, groups, -1, -1)


def _over_groups(gradient: Tensor) -> Tensor:
    """(B, groups, k, d) -> (B, k, d), summed."""
    return gradient[:, 0] if gradient.shape[1] == 1 else gradient.sum(1)


# Which calls a row needs ------------------------------------------------------------------------


def _calls(plan: AttentionPlan, window: int | None, dtype: torch.dtype) -> Calls:
    """Return the calls of a layer."""
    trees: dict[int, list[int]] = {}
    for index in range(plan.first, len(plan.segments)):
        trees.setdefault(plan.path(index)[0], []).append(index)
    calls: list[SegmentCall | BlockCall] = []
    by_size: dict[tuple[int, int], list[_Tree]] = {}
    for queried in trees.values():
        tree = _Tree(plan, queried)
        if len(tree.keys) > BLOCK_TOKENS:
            for index in queried:
                calls += _segment_calls(plan, index, window, dtype)
        else:
            size = _rounded_up(len(tree.queries)), _rounded_up(len(tree.keys))
            by_size.setdefault(size, []).append(tree)
    blocks = [_block_call(trees, size, window, dtype) for size, trees in by_size.items()]
    return [*calls, *blocks]


def _rounded_up(tokens: int) -> int:
    """Return the size of the block of a text: a function of its length alone, and so its scores."""
    return -(-tokens // _BLOCK_STEP) * _BLOCK_STEP


def _segment_calls(
    plan: AttentionPlan, index: int, window: int | None, dtype: torch.dtype
) -> list[SegmentCall]:
    """Return the calls of a segment: several where it is long, so that few keys are masked."""
    start, length = int(plan.starts[index]), plan.lengths[index]
    before = [
        slice(int(plan.starts[step]), int(plan.starts[step + 1]))
        for step in plan.segments[index].ancestors
    ]
    borders = np.linspace(0, length, -(-length // CALL_TOKENS) + 1).astype(int).tolist()
    calls = []
    for first, last in pairwise(borders):
        earlier = [slice(start, start + first)] if first else []
        keys = (*before, *earlier, slice(start + first, start + last))
        seen = sees(plan, index, window, torch.device("cpu"), slice(first, last))
        mask = None if seen is None else _additive(seen, dtype)
        queries = slice(keys[-1].start - plan.query_offset, keys[-1].stop - plan.query_offset)
        calls.append(SegmentCall(queries, keys, _runs(keys), mask))
    return calls


def _runs(slices: Sequence[slice]) -> tuple[slice, ...]:
    """Join adjacent slices."""
    runs = [slices[0]]
    for part in slices[1:]:
        if part.start == runs[-1].stop:
            runs[-1] = slice(runs[-1].start, part.stop)
        else:
            runs.append(part)
    return tuple(runs)


class _Tree:
    """Some segments with a common root, and the keys that they see.

    Attributes:
        queries: Places of their tokens among the queries; (q,).
        keys: Places of these keys among all keys; (k,).
    """

    def __init__(self, plan: AttentionPlan, queried: Sequence[int]) -> None:
        seen = sorted({step for index in queried for step in plan.path(index)})
        self._related = np.array([[b in plan.path(a) for b in seen] for a in seen])
        lengths = np.array(plan.lengths)
        self.keys = plan.key_places(seen)
        self.queries = plan.key_places(queried) - plan.query_offset
        self._places = np.concatenate(
            [plan.depths[step] + np.arange(lengths[step]) for step in seen]
        )
        self._segments = np.repeat(np.arange(len(seen)), lengths[seen])
        self._queried = np.flatnonzero(np.isin(self._segments, np.searchsorted(seen, queried)))

    def sees(self, window: int | None) -> Any:
        """Return which keys each query sees; (q, k)."""
        back = self._places[self._queried][:, None] - self._places
        related = self._related[self._segments[self._queried]][:, self._segments]
        seen = related & (back >= 0)
        return seen if window is None else seen & (back < window)


def _block_call(
    trees: Sequence[_Tree], size: tuple[int, int], window: int | None, dtype: torch.dtype
) -> BlockCall:
    queries = np.zeros((len(trees), size[0]), dtype=np.int64)
    keys = np.zeros((len(trees), size[1]), dtype=np.int64)
    real_queries, real_keys = np.zeros(queries.shape, bool), np.zeros(keys.shape, bool)
    seen = np.zeros((len(trees), 1, *size), bool)
    # Padded queries see one key, or their softmax would be 0 / 0.
    seen[..., 0] = True
    for row, tree in enumerate(trees):
        q, k = len(tree.queries), len(tree.keys)
        queries[row, :q], real_queries[row, :q] = tree.queries, True
        keys[row, :k], real_keys[row, :k] = tree.keys, True
        seen[row, 0, :q, :k] = tree.sees(window)
    return BlockCall(
        torch.from_numpy(queries),
        torch.from_numpy(keys),
        torch.from_numpy(real_queries.ravel()),
        torch.from_numpy(real_keys.ravel()),
        _additive(torch.from_numpy(seen), dtype),
    )


def sees(
    plan: AttentionPlan,
    index: int,
    window: int | None,
    device: torch.device,
    tokens: slice | None = None,
) -> Tensor | None:
    """Return which keys of its path the tokens of a segment see; None for a plain causal mask.

    A token sees itself and the ``window - 1`` tokens before it. True where a key is seen: (tokens,
    keys up to the last of them), for all tokens of the segment or a slice of them.
    """
    first, last = (0, plan.lengths[index]) if tokens is None else (tokens.start, tokens.stop)
    before = int(plan.depths[index]) + first
    total = int(plan.depths[index]) + last
    if before == 0 and (window is None or window >= total):
        return None
    keys = torch.arange(total, device=device)
    queries = keys[before:, None]
    seen = keys <= queries
    return seen if window is None else seen & (queries - keys < window)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


# Calls that autograd records one by one ---------------------------------------------------------


def _attend_each(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, options: AttentionOptions
) -> Tensor:
    # `split` and not slices: the backward of a slice fills and adds a tensor of the whole row.
    queries = torch.split(query, plan.lengths[plan.first :], dim=2)
    keys = torch.split(key, plan.lengths, dim=2)
    values = torch.split(value, plan.lengths, dim=2)
    outputs = []
    for part, index in zip(queries, range(plan.first, len(plan.segments)), strict=True):
        path = plan.path(index)
        key, value = (_join([parts[step] for step in path]) for parts in (keys, values))
        mask = plan.prepare(sees, index, options.window, query.device)
        outputs.append(_attend(part, key, value, mask, options))
    return torch.cat(outputs, dim=2)


def _join(parts: list[Tensor], dim: int = 2) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    if options.softcap is not None or options.sinks is not None:
        return _attend_explicitly(query, key, value, mask, options)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=options.dropout,
        is_causal=mask is None and query.shape[2] > 1,
        scale=options.scaling,
    )


def _attend_explicitly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions
) -> Tensor:
    """Attend with what the fused kernels lack: soft-capped scores (Gemma 2) and sinks (gpt-oss)."""
    scale = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
    scores = (query @ key.transpose(2, 3)) * scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if options.sinks is not None:
        sink = options.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights[..., : key.shape[2]].to(value.dtype)
    return nn.functional.dropout(weights, p=options.dropout) @ value
