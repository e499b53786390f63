"""What the attention layers of one forward pass must know: who sees whom in the packed row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.engine.layout import Segment

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AttentionOptions:
    """How a layer attends, as its model passes it.

    Attributes:
        scaling: Factor on the scores; None for 1 / sqrt(head_dim).
        dropout: Probability of dropping an attention weight.
        window: A token sees itself and the ``window - 1`` tokens before it; None for all.
        softcap: Scores become ``softcap * tanh(scores / softcap)`` (Gemma 2); None for none.
        sinks: A score per head that takes part in the softmax and brings no value (gpt-oss);
            (heads,) or None.
    """

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class LayerFacts:
    """What a layer asks of a backend.

    Attributes:
        heads: Query heads.
        kv_heads: Key-value heads.
        head_dim: Width of queries and keys.
        value_dim: Width of values.
        scaling: Factor on the scores; None for 1 / sqrt(head_dim).
        window: Its sliding window in tokens; None for none.
        softcap: Cap of its scores; None for none.
        sinks: Whether its heads have attention sinks.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    @classmethod
    def of(cls, query: Tensor, value: Tensor, options: AttentionOptions) -> "LayerFacts":
        """Describe a call."""
        return cls(
            heads=query.shape[1],
            kv_heads=value.shape[1],
            head_dim=query.shape[-1],
            value_dim=value.shape[-1],
            scaling=options.scaling,
            window=options.window,
            softcap=options.softcap,
            sinks=options.sinks is not None,
        )


class Attend(Protocol):
    """A backend: attention of the packed row, given who sees whom."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: "AttentionPlan",
        options: AttentionOptions,
    ) -> Tensor:
        """Return (1, heads, T, value_dim) of query (1, heads, T, d), key and value (1, kv, S, d).

        S is T and, before it, the tokens of ``plan.memory``.
        """


class Memory:
    """Keys and values of a row, layer after layer, for a later row that continues it."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.layers: list[tuple[Tensor, Tensor]] = []


class AttentionPlan:
    """The segments of a packed row, and what the probe wants to know of its forward pass.

    Args:
        segments: The runs of the row, in row order, after those of ``memory``, to which the
            ancestors of a segment may refer.
        attend: The backend.
        memory: What an earlier row kept, if this one continues it.
        keep: Where this row's keys and values are kept for a later one.

    Attributes:
        segments: All runs, those of the memory first.
        lengths: Tokens of each of them.
        first: Index of the first run of the row itself.
        calls: How often an attention layer has used this plan.
        seen: What those layers asked for.
        prepared: What a backend derives from the segments once, for all layers.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        attend: Attend,
        memory: Memory | None = None,
        keep: Memory | None = None,
    ) -> None:
        before = () if memory is None else memory.segments
        self.segments = (*before, *segments)
        self.first = len(before)
        self.lengths = [segment.length for segment in self.segments]
        self.attend = attend
        self.memory = memory
        self.keep = keep
        self.calls = 0
        self.seen: set[LayerFacts] = set()
        self.prepared: dict[Any, Any] = {}

    @cached_property
    def starts(self) -> Ints:
        """First key of each segment, counted from the first key of the memory; (segments + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def depths(self) -> Ints:
        """Position of each segment's first token on its own path; (segments,)."""
        return np.array(
            [sum(self.lengths[step] for step in segment.ancestors) for segment in self.segments],
            dtype=np.int64,
        )

    @property
    def query_offset(self) -> int:
        """Keys that stand before the first query."""
        return int(self.starts[self.first])

    def key_places(self, segments: Sequence[int]) -> Ints:
        """Return where the tokens of some segments stand among the keys, segment by segment."""
        starts = self.starts
        return np.concatenate([np.arange(starts[step], starts[step + 1]) for step in segments])

    def path(self, index: int) -> tuple[int, ...]:
        """Return the segments that a segment attends to, itself last."""
        return (*self.segments[index].ancestors, index)

    def layer(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Count a layer's call; return its keys and values with those of the memory before them."""
        call = self.calls
        self.calls += 1
        if self.keep is not None:
            self.keep.layers.append((key.detach(), value.detach()))
        if self.memory is None or not self.memory.segments:
            return key, value
        earlier_key, earlier_value = self.memory.layers[call]
        return torch.cat([earlier_key, key], dim=2), torch.cat([earlier_value, value], dim=2)
