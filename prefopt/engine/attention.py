"""The ``segments`` attention backend: scaled dot-product attention, one call per segment.

It is registered through transformers' attention interface under ``NAME``; model classes are never
patched. A forward pass that brings a plan (keyword ``prefopt_plan``) is computed by segments: each
attends causally to itself and wholly to its ancestors. A forward pass without a plan (generation, a
plain batch) is computed as the model would without us.

The plan travels as a keyword argument, which gradient checkpointing keeps, so a layer recomputed in
the backward pass meets the plan of its own forward pass.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from prefopt.engine.layout import Segment

NAME = "prefopt_segments"


class SegmentPlan:
    """What the attention of one forward pass must know, and what the probe wants to know of it.

    Args:
        segments: The runs of the packed row, in row order.

    Attributes:
        lengths: Tokens of each segment.
        calls: How often an attention layer has used this plan.
        windows: The sliding windows those layers passed, in tokens.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.lengths = [segment.length for segment in self.segments]
        self.calls = 0
        self.windows: set[int] = set()
        self._masks: dict[tuple[int, int | None, torch.device], Tensor | None] = {}

    def mask(self, index: int, window: int | None, device: torch.device) -> Tensor | None:
        """Return which keys each token of a segment sees; None where that is plainly causal.

        Args:
            index: The segment.
            window: A token sees itself and the ``window - 1`` tokens before it; None for all.
            device: Where the mask is wanted.

        Returns:
            (length, ancestors' lengths + length), True where the key is seen.
        """
        key = (index, window, device)
        if key not in self._masks:
            self._masks[key] = self._build_mask(index, window, device)
        return self._masks[key]

    def _build_mask(self, index: int, window: int | None, device: torch.device) -> Tensor | None:
        segment = self.segments[index]
        before = sum(self.lengths[ancestor] for ancestor in segment.ancestors)
        total = before + segment.length
        if before == 0 and (window is None or window >= total):
            return None
        keys = torch.arange(total, device=device)
        queries = keys[before:, None]
        seen = keys <= queries
        return seen if window is None else seen & (queries - keys < window)


def segments_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefopt_plan: SegmentPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' ``AttentionInterface``.

    Args:
        module: The calling attention layer.
        query: (1, heads, T, head_dim).
        key: (1, key-value heads, T, head_dim).
        value: (1, key-value heads, T, head_dim).
        attention_mask: Ignored with a plan, which replaces it.
        scaling: Factor on the scores; None for 1 / sqrt(head_dim).
        dropout: Probability of dropping an attention weight.
        prefopt_plan: The segments of the packed row; None for a plain forward pass.
        **kwargs: What the model passes besides: ``sliding_window``, ``softcap``, ``s_aux``, ...

    Returns:
        The attention output (1, T, heads, head_dim), and None for the weights.

    Raises:
        NotImplementedError: If the layer biases its scores by position, which segments cannot.
    """
    if prefopt_plan is None:
        return _plain(module, query, key, value, attention_mask, scaling, dropout, kwargs)
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention with a position bias cannot share prefixes")
    window = kwargs.get("sliding_window")
    prefopt_plan.calls += 1
    if window is not None:
        prefopt_plan.windows.add(int(window))
    # `split` and not slices: the backward of a slice fills and adds a tensor of the whole row.
    queries = torch.split(query, prefopt_plan.lengths, dim=2)
    keys = torch.split(key, prefopt_plan.lengths, dim=2)
    values = torch.split(value, prefopt_plan.lengths, dim=2)
    outputs = []
    for index, segment in enumerate(prefopt_plan.segments):
        path = (*segment.ancestors, index)
        outputs.append(
            _attend(
                queries[index],
                _join([keys[step] for step in path]),
                _join([values[step] for step in path]),
                prefopt_plan.mask(index, window, query.device),
                scaling=scaling,
                dropout=dropout,
                softcap=kwargs.get("softcap"),
                sinks=kwargs.get("s_aux"),
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None and query.shape[2] > 1,
            scale=scaling,
        )
    return _attend_explicitly(query, key, value, mask, scaling, dropout, softcap, sinks)


def _attend_explicitly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with what the fused kernels lack: soft-capped scores (Gemma 2) and sinks (gpt-oss)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights[..., : key.shape[2]].to(value.dtype)
    return nn.functional.dropout(weights, p=dropout) @ value


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, None]:
    """Attend as the model would without a plan; its own eager function where SDPA falls short."""
    needs_eager = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = eager if needs_eager and eager is not None else sdpa_attention_forward
    output, _ = attend(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )
    return output, None


_planned = False


@contextmanager
def planned_forward() -> Iterator[None]:
    """Within it, models build no attention masks for this backend: the plan stands for them."""
    global _planned
    outer, _planned = _planned, True
    try:
        yield
    finally:
        _planned = outer


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # Additive masks serve both SDPA and the eager functions that `_plain` may call.
    return None if _planned else eager_mask(*args, **kwargs)


AttentionInterface.register(NAME, segments_attention)
AttentionMaskInterface.register(NAME, _mask)
