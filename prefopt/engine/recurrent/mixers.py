"""Recurrent layers that compute the packed row in waves, through their own forward pass.

A mixer of transformers takes hidden states and a cache from which a text continues. Where a row has
a plan, the mixer is called once for each wave, over rows of whole runs, with a ``StateCache`` that
holds the states with which they start: its arithmetic, and the kernels it takes (causal-conv1d,
mamba-ssm, flash-linear-attention, where they are installed), are its own. Without a plan it does
what it always did.

Nothing is done to classes: the forward pass of each mixer object is replaced until ``remove``, so a
layer that runs again in the backward pass (gradient checkpointing) does the same. The plan comes
as a keyword; where a layer does not hand its keywords on (LFM2 in transformers 5.17), a hook of the
layer notes it.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.attention.plan import AttentionPlan
from prefopt.engine.recurrent.states import MixerStates, StateCache, joined
from prefopt.engine.recurrent.waves import make_waves

# Names under which mixers take their cache.
_CACHES = ("cache_params", "past_key_values")


class WaveForward:
    """The forward pass of one mixer.

    Attributes:
        mixer: The module.
        plan: What the layer around it was given, until the mixer is called; None for a plain batch.
    """

    def __init__(self, mixer: nn.Module, layer: nn.Module) -> None:
        self.mixer = mixer
        self.plan: AttentionPlan | None = None
        self._layer: Any = mixer.layer_idx
        self._replaced = vars(mixer).get("forward")  # what accelerate puts on a module
        parameters = signature(type(mixer).forward).parameters
        self._cache = next(name for name in _CACHES if name in parameters)
        self._hook = layer.register_forward_pre_hook(self._note_plan, with_kwargs=True)
        mixer.forward = self

    def _note_plan(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.plan = kwargs.get("prefopt_plan")

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        # Looked up anew: a bound method is pickled by its name, which is that of its replacement.
        if self._replaced is not None:
            return self._replaced(*args, **kwargs)
        return type(self.mixer).forward(self.mixer, *args, **kwargs)

    def remove(self) -> None:
        """Give the mixer its own forward pass back."""
        self._hook.remove()
        vars(self.mixer).pop("forward", None)
        if self._replaced is not None:
            self.mixer.forward = self._replaced

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute plain rows, or a packed row (1, T, D) in waves if there is a plan for it."""
        noted, self.plan = self.plan, None
        plan = kwargs.pop("prefopt_plan", noted)
        if plan is not None:
            output: Tensor = self._in_waves(hidden_states, plan)
        else:
            output = self._own(hidden_states, *args, **kwargs)
        return output

    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch
    def _in_waves(self, hidden_states: Tensor, plan: AttentionPlan) -> Tensor:
        waves = plan.prepare(make_waves, hidden_states.device)
        layer = self._layer
        plan.mixers.add(layer)
        states: MixerStates | None = None
        if plan.read_cache is not None:
            states = plan.read_cache.states.get(layer)
        outputs = []
        for wave in waves.calls:
            start = None
            if wave.starts is not None:
                assert states is not None
                start = states.of(wave.starts)
            cache = StateCache(start, wave.mask)
            rows = hidden_states[0].index_select(0, wave.tokens.flatten())
            rows = rows.view(*wave.tokens.shape, -1)
            output = self._own(rows, attention_mask=wave.mask, **{self._cache: cache})
            outputs.append(output.flatten(0, 1))
            if wave.keeps:
                states = joined(states, cache.ends)
        if plan.write_cache is not None and states is not None:
            plan.write_cache.states[layer] = states.of(waves.kept).detached()
        return torch.cat(outputs).index_select(0, waves.order)[None]


def install(backbone: nn.Module) -> list[WaveForward]:
    """Let the recurrent mixers of a model compute packed rows in waves; return them.

    One that does already is left as it is.
    """
    return [
        ours
        if isinstance(ours := vars(mixer).get("forward"), WaveForward)
        else WaveForward(mixer, layer)
        for layer in backbone.modules()
        for mixer in layer.children()
        if is_mixer(mixer)
    ]


def remove(mixers: Sequence[WaveForward]) -> None:
    """Give mixers their own forward passes back."""
    for mixer in mixers:
        mixer.remove()


def is_mixer(module: nn.Module) -> bool:
    """Whether a module convolves over tokens and takes a cache: no more, the probe says the rest.

    Its convolution is one along the tokens, each channel by itself.
    """
    parameters = signature(type(module).forward).parameters
    convolves = any(
        isinstance(it, nn.Conv1d) and it.groups == it.in_channels for it in module.children()
    )
    return convolves and hasattr(module, "layer_idx") and any(it in parameters for it in _CACHES)
