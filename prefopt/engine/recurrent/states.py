"""What a recurrent layer knows at the end of a run of tokens, and how it is handed on.

The mixers of transformers (gated delta rule, Mamba2, short convolutions) keep two things of a text:
the last inputs of their convolution, and a recurrent state. They read and write them through a
cache, for generation. ``StateCache`` stands in for it: it gives the states with which runs start,
and keeps those with which they end, with gradients and nothing written in place.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class MixerStates(NamedTuple):
    """States of one mixer at the ends of n runs.

    Attributes:
        conv: The last inputs of the convolution, oldest first; (n, channels, kernel - 1).
        recurrent: The recurrent states; (n, ...), None for a mixer that only convolves.
    """

    conv: Tensor
    recurrent: Tensor | None

    def of(self, rows: Tensor) -> "MixerStates":
        """Return the states of some runs (m,), in their order."""
        recurrent = None if self.recurrent is None else self.recurrent.index_select(0, rows)
        return MixerStates(self.conv.index_select(0, rows), recurrent)

    def detached(self) -> "MixerStates":
        """Return the same without gradient."""
        recurrent = None if self.recurrent is None else self.recurrent.detach()
        return MixerStates(self.conv.detach(), recurrent)


def joined(first: MixerStates | None, second: MixerStates) -> MixerStates:
    """Return the states of one set of runs, if any, followed by those of another."""
    if first is None:
        return second
    recurrent = None
    if first.recurrent is not None and second.recurrent is not None:
        recurrent = torch.cat([first.recurrent, second.recurrent])
    return MixerStates(torch.cat([first.conv, second.conv]), recurrent)


class StateCache:
    """What a mixer takes for its cache in one call over (n, width) tokens.

    It has the methods of transformers' caches that mixers call, those of 5.17 too, where mixers
    read states from ``layers``. It says that it records the past, so that no mixer updates the
    convolution's inputs in place.

    Args:
        start: States with which the rows start; None for rows that start texts.
        mask: True for tokens, False for what fills rows before them; (n, width), None for none.
    """

    record_past = True

    def __init__(self, start: MixerStates | None, mask: Tensor | None) -> None:
        self._start, self._mask = start, mask
        self._conv: Tensor | None = None
        self._recurrent: Tensor | None = None
        self.conv_states = [None if start is None else start.conv]
        self.recurrent_states = [None if start is None else start.recurrent]

    @property
    def ends(self) -> MixerStates:
        """The states at the right ends of the rows, after the call.

        Raises:
            NotImplementedError: If the mixer did not hand over its convolution's inputs.
        """
        if self._conv is None:
            raise NotImplementedError("a recurrent layer keeps its states to itself")
        return MixerStates(self._conv, self._recurrent)

    @property
    def layers(self) -> "StateCache":
        """The caches of all layers, by number."""
        return self

    def __getitem__(self, layer: int) -> "StateCache":
        return self

    def has_previous_state(self, *_: Any, **__: Any) -> bool:
        """Whether the rows start with states."""
        return self._start is not None

    def is_recording_past(self, *_: Any, **__: Any) -> bool:
        """Return that all past inputs are wanted, not the last alone."""
        return True

    def get_conv_state(self, *_: Any, **__: Any) -> Tensor | None:
        """Return the last inputs of the convolution before the rows."""
        return self.conv_states[0]

    def get_recurrent_state(self, *_: Any, **__: Any) -> Tensor | None:
        """Return the recurrent states with which the rows start."""
        return self.recurrent_states[0]

    def update_conv_state(
        self, inputs: Tensor, *_: Any, conv_kernel_size: int, **__: Any
    ) -> Tensor:
        """Return the inputs (n, channels, width) behind those before them, and keep the last."""
        if self._mask is not None:  # a bias makes inputs even of what fills rows
            inputs = inputs * self._mask[:, None].to(inputs.dtype)
        if self._start is not None:
            inputs = torch.cat([self._start.conv.to(inputs.dtype), inputs], dim=-1)
        before = conv_kernel_size - 1
        missing = max(before - inputs.shape[-1], 0)
        self._conv = F.pad(inputs, (missing, 0))[..., inputs.shape[-1] + missing - before :]
        return inputs

    def update_recurrent_state(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Keep the recurrent states at the ends of the rows."""
        self._recurrent = states
        return states
