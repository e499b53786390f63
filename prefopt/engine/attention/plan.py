"""What the attention layers of one forward pass need: which tokens see which in the packed row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.engine.layout import Segment
from prefopt.engine.recurrent.states import MixerStates

Ints = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class AttentionOptions:
    """How a layer attends, as its model passes it.

    Attributes:
        scaling: Factor on the scores; None for 1 / sqrt(head_dim).
        dropout: Probability of dropping an attention weight.
        window: A token sees itself and the ``window - 1`` tokens before it; None for all.
        softcap: Scores become ``softcap * tanh(scores / softcap)`` (Gemma 2); None for none.
        sinks: A score per head that is part of the softmax and has no value (gpt-oss); (heads,) or
            None.
    """

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class LayerFacts:
    """What a layer requires of a backend: its options, and these.

    Attributes:
        heads: Query heads.
        kv_heads: Key-value heads.
        head_dim: Width of queries and keys.
        value_dim: Width of values.
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
            query.shape[1],
            value.shape[1],
            query.shape[-1],
            value.shape[-1],
            scaling=options.scaling,
            window=options.window,
            softcap=options.softcap,
            sinks=options.sinks is not None,
        )


class Attend(Protocol):
    """A backend: attention in the packed row, given which tokens see which."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: "AttentionPlan",
        options: AttentionOptions,
    ) -> Tensor:
        """Return (1, heads, T, value_dim) of query (1, heads, T, d), key and value (1, kv, S, d).

        S is T plus the tokens of ``plan.read_cache``, which come first.
        """


@dataclass(eq=False)
class KVCache:
    """Keys, values and recurrent states of a row, for a later row that continues it.

    Attributes:
        segments: The row.
        branch_points: Segments at whose ends the later row branches off.
        layers: Keys and values of each attention layer, in the order of their calls; without
            gradient, (1, kv_heads, T, d) each.
        states: Of each recurrent layer, by its number: at the ends of the branch points, in
            ascending order; without gradient.
    """

    segments: Sequence[Segment]
    branch_points: frozenset[int] = frozenset()
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    states: dict[int, MixerStates] = field(default_factory=dict)


class AttentionPlan:
    """The segments of a packed row, and what its forward pass shows of the attention layers.

    No dataclass: FSDP2 casts the tensors of all that layers are given, and copies a dataclass.

    Args:
        segments: The runs of the row, in row order; ancestors are counted from the first segment of
            ``read_cache``.
        attend: The backend.
        read_cache: Keys and values of an earlier row that this one continues; None for none.
        write_cache: Stores this row's keys and values for a later one; None for none.

    Attributes:
        segments: The runs of the row, behind those of ``read_cache``.
        calls: How often an attention layer has used this plan.
        seen: What those layers required.
        mixers: Numbers of the recurrent layers that have used it.
        first: Index of the first run of the row itself.
        lengths: Tokens of each segment.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        attend: Attend,
        read_cache: KVCache | None = None,
        write_cache: KVCache | None = None,
    ) -> None:
        before = () if read_cache is None else read_cache.segments
        self.segments = (*before, *segments)
        self.attend = attend
        self.read_cache = read_cache
        self.write_cache = write_cache
        self.calls = 0
        self.seen: set[LayerFacts] = set()
        self.mixers: set[int] = set()
        self.first = len(before)
        self.lengths = [segment.length for segment in self.segments]
        self._prepared: dict[Any, Any] = {}

    def prepare(self, make: Callable[..., T], *arguments: Any) -> T:
        """Return ``make(plan, *arguments)``, made once for all layers."""
        at = (make, *arguments)
        if at not in self._prepared:
            self._prepared[at] = make(self, *arguments)
        prepared: T = self._prepared[at]
        return prepared

    @cached_property
    def starts(self) -> Ints:
        """First key of each segment, and the end of the last; (segments + 1,)."""
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
        """Keys before the first query."""
        return int(self.starts[self.first])

    def key_places(self, segments: Sequence[int]) -> Ints:
        """Return the places of the tokens of some segments among the keys, segment by segment."""
        starts = self.starts
        return np.concatenate([np.arange(starts[step], starts[step + 1]) for step in segments])

    def path(self, index: int) -> tuple[int, ...]:
        """Return the segments that a segment attends to, itself last."""
        return (*self.segments[index].ancestors, index)

    def layer(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Count a layer's call, and return its keys and values behind those of ``read_cache``."""
        call = self.calls
        self.calls += 1
        if self.write_cache is not None:
            self.write_cache.layers.append((key.detach(), value.detach()))
        if self.read_cache is None or not self.read_cache.segments:
            return key, value
        earlier_key, earlier_value = self.read_cache.layers[call]
        return torch.cat([earlier_key, key], dim=2), torch.cat([earlier_value, value], dim=2)
