"""What a run needs of memory and time, computed from what a few of its steps needed.

Everything here is plain arithmetic on numbers that ``prefopt.training.planning`` measures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from prefopt.data.prepared import Ints

# Bytes of a weight in NF4 with its scale: half a byte, and a float32 for each block of 64.
NF4_BYTES = 0.5 + 4 / 64
# AdamW keeps two moments of each trained weight, in float32.
ADAM_BYTES = 8


class Line(NamedTuple):
    """``start + slope x`` of what was measured at several x."""

    start: float
    slope: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> "Line":
        """Return the line of least squares; neither start nor slope is below 0.

        Args:
            points: Pairs of x, above 0, and y, at least 0; one or more.

        Examples:
            >>> round(Line.through([(1, 3), (2, 5)]).at(4), 6)
            9.0
            >>> Line.through([(2, 5)])
            Line(start=0.0, slope=2.5)
        """
        x, y = np.array(points, dtype=float).T
        through_0 = cls(0.0, float((x * y).sum() / (x * x).sum()))
        if np.ptp(x) == 0:
            return through_0
        slope, start = np.polyfit(x, y, 1)
        if slope < 0:
            return cls(float(y.mean()), 0.0)
        return through_0 if start < 0 else cls(float(start), float(slope))

    def at(self, x: float) -> float:
        """Return the line's value."""
        return self.start + self.slope * x


@dataclass(frozen=True)
class Memory:
    """Where the memory of a step goes; bytes.

    Attributes:
        weights: Of the model, adapters and buffers included.
        gradients: Of what is trained.
        optimizer: What the optimiser keeps from step to step.
        step: The most that a step allocates beside these two, by its tokens; gradients included.
        process: What the process holds beside: code, other buffers.
    """

    weights: float
    gradients: float
    optimizer: float
    step: Line
    process: float = 0.0

    def of(self, tokens: float) -> float:
        """Return the most that is in use in a step of so many tokens in one pass."""
        return self.process + self.weights + self.optimizer + self.step.at(tokens)

    def most_tokens(self, limit: float) -> int:
        """Return how many tokens of one pass fit into so many bytes; 0 for none."""
        left = limit - self.of(0)
        if left <= 0:
            return 0
        return math.floor(left / self.step.slope) if self.step.slope else 2**62


@dataclass(frozen=True)
class Model:
    """What of a model decides how its memory changes with the options of training.

    Attributes:
        layers: Of the transformer.
        hidden: Width of the hidden states.
        bytes_per_number: Of activations.
        linear: Weights of its linear layers, without the output layer.
        linear_bytes: What they take.
        adapter: Weights that LoRA would add, in the layers that peft chooses for this model.
    """

    layers: int
    hidden: int
    bytes_per_number: int
    linear: int
    linear_bytes: float
    adapter: int


def with_checkpointing(memory: Memory, model: Model) -> Memory:
    """Return the memory with ``gradient_checkpointing``.

    Each layer keeps its input only, and one layer at a time what it needs in its backward pass.
    """
    if not model.layers:
        return memory
    inputs = model.layers * model.hidden * model.bytes_per_number
    slope = inputs + memory.step.slope / model.layers
    return replace(memory, step=Line(memory.step.start, min(slope, memory.step.slope)))


def with_lora(memory: Memory, model: Model) -> Memory:
    """Return the memory of a run that trains an adapter (in float32) in place of all weights."""
    adapter = 4.0 * model.adapter
    step = Line(max(memory.step.start - memory.gradients, 0.0) + adapter, memory.step.slope)
    return replace(
        memory,
        weights=memory.weights + adapter,
        gradients=adapter,
        optimizer=float(ADAM_BYTES * model.adapter),
        step=step,
    )


def with_4_bits(memory: Memory, model: Model) -> Memory:
    """Return the memory with the linear layers in NF4, under an adapter."""
    saved = model.linear_bytes - NF4_BYTES * model.linear
    return replace(memory, weights=memory.weights - max(saved, 0.0))


def rows_that_fit(memory: Memory, sizes: Ints, limit: float) -> int:
    """Return how many rows a pass can have, whichever they are; 0 where the largest does not fit.

    Args:
        memory: Of the run.
        sizes: Tokens of each row; (n,).
        limit: Bytes that there are.
    """
    largest_first = np.cumsum(np.sort(sizes)[::-1])
    return int(np.searchsorted(largest_first, memory.most_tokens(limit), side="right"))


@dataclass(frozen=True)
class Times:
    """Where the time of a run goes; seconds.

    Attributes:
        start: From the command to the model and its rows, made ready.
        reference: Reference log-probs that the store lacks.
        steps: All optimiser steps.
        evaluations: All of them.
        saving: Checkpoints and the model.
    """

    start: float
    reference: float
    steps: float
    evaluations: float
    saving: float

    @property
    def total(self) -> float:
        """End to end."""
        return self.start + self.reference + self.steps + self.evaluations + self.saving


def seconds_of_steps(
    passes: Line, optimizer: float, epoch: Sequence[float], passes_of_step: int, steps: int
) -> float:
    """Return how long optimiser steps take.

    Args:
        passes: Seconds of a forward and a backward pass with its rows, by their tokens.
        optimizer: Seconds of the optimiser in a step.
        epoch: Tokens of each pass of an epoch, in order.
        passes_of_step: Passes of an optimiser step (gradient accumulation).
        steps: Optimiser steps of the run.
    """
    of_epoch = [passes.at(tokens) for tokens in epoch]
    in_epoch = -(-len(of_epoch) // passes_of_step)
    whole, rest = divmod(steps, in_epoch)
    return whole * sum(of_epoch) + sum(of_epoch[: rest * passes_of_step]) + steps * optimizer
