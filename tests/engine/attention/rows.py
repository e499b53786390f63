"""Packed rows of many shapes, and attention written out token by token to compare with."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.engine.attention import AttentionOptions, AttentionPlan, KVCache
from prefopt.engine.layout import Segment

# A shape: the segments of a row.
ROWS: dict[str, tuple[Segment, ...]] = {
    "one text": (Segment(7),),
    "pair": (Segment(9), Segment(4, (0,)), Segment(6, (0,))),
    "texts alone": (Segment(3), Segment(1), Segment(5)),
    "deep": (
        Segment(5),
        Segment(3, (0,)),
        Segment(2, (0, 1)),
        Segment(4, (0, 1, 2)),
        Segment(1, (0, 1, 2)),
        Segment(6, (0, 1)),
        Segment(2, (0,)),
        Segment(8),
        Segment(1, (7,)),
    ),
    "long": (Segment(130), Segment(20, (0,)), Segment(3, (0, 1)), Segment(40, (0,)), Segment(150)),
}

OPTIONS = {
    "plain": AttentionOptions(),
    "scaled": AttentionOptions(scaling=0.3),
    "window": AttentionOptions(window=4),
    "wide window": AttentionOptions(window=500),
}


def random_row(generator: Any) -> tuple[Segment, ...]:
    """Return texts that branch anywhere, in the order of a walk through the tree."""
    segments: list[Segment] = []

    def grow(ancestors: tuple[int, ...]) -> None:
        segments.append(Segment(int(generator.integers(1, 12)), ancestors))
        path = (*ancestors, len(segments) - 1)
        for _ in range(int(generator.integers(0, 4)) if len(path) < 5 else 0):
            grow(path)

    for _ in range(int(generator.integers(1, 4))):
        grow(())
    return tuple(segments)


def tensors(
    segments: Any, heads: int = 4, kv_heads: int = 2, width: int = 8, dtype: Any = torch.float64
) -> list[Tensor]:
    """Return query, key and value of a row, that want gradients."""
    torch.manual_seed(0)
    tokens = sum(segment.length for segment in segments)
    return [
        torch.randn(1, count, tokens, width, dtype=dtype, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    ]


def naive(
    query: Tensor, key: Tensor, value: Tensor, segments: Any, options: AttentionOptions
) -> Tensor:
    """Attend token by token: each sees its path up to itself."""
    starts = np.cumsum([0, *(segment.length for segment in segments)])
    groups = query.shape[1] // key.shape[1]
    first = int(starts[-1]) - query.shape[2]
    outputs = []
    for index, segment in enumerate(segments):
        for offset in range(segment.length):
            at = int(starts[index]) + offset
            if at < first:
                continue
            seen = [p for step in segment.ancestors for p in range(starts[step], starts[step + 1])]
            seen += range(starts[index], at + 1)
            seen = seen[-options.window :] if options.window is not None else seen
            heads = [
                _one(query[0, head, at - first], key[0, head // groups, seen], head, options)
                @ value[0, head // groups, seen]
                for head in range(query.shape[1])
            ]
            outputs.append(torch.stack(heads))
    return torch.stack(outputs, dim=1)[None]


def _one(query: Tensor, keys: Tensor, head: int, options: AttentionOptions) -> Tensor:
    """Return the weights of the keys that one query of one head sees."""
    scale = len(query) ** -0.5 if options.scaling is None else options.scaling
    scores = keys @ query * scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    total = scores.exp().sum()
    if options.sinks is not None:
        total = total + options.sinks[head].exp()
    return scores.exp() / total


def plan_of(segments: Any, attend: Any, kept: int = 0) -> AttentionPlan:
    """Return the plan of a row whose first ``kept`` segments are cached from an earlier row."""
    cache = KVCache(segments[:kept]) if kept else None
    return AttentionPlan(segments[kept:], attend, cache)


def queries_of(query: Tensor, segments: Any, kept: int) -> Tensor:
    """Return the queries of a row without those of its first ``kept`` segments."""
    return query[:, :, sum(segment.length for segment in segments[:kept]) :]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return an output, and the gradients of a loss that weighs its numbers differently."""
    # In float16 linspace counts up to 65504 only.
    exact = torch.promote_types(output.dtype, torch.float32)
    weights = torch.linspace(-1, 2, output.numel(), dtype=exact, device=output.device)
    weights = weights.view_as(output).to(output.dtype)
    gradients = torch.autograd.grad((output * weights).sum(), inputs)
    return [output.detach(), *gradients]
