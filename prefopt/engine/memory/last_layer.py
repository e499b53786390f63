"""Compute the last layer's MLP only for tokens that predict something.

Of the tokens of a prompt the last layer's keys and values are needed, and the output of the last
token alone. On Anthropic's HH three tokens in five predict nothing, and the MLP of the last of 8
layers is a twelfth of the work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.memory.recompute import compiled_or_checkpointed


def decoder_layers(backbone: nn.Module) -> nn.ModuleList | None:
    """Return the layers of a decoder, first to last; None for models of several towers."""
    layers = getattr(backbone, "layers", getattr(backbone, "h", None))
    return layers if isinstance(layers, nn.ModuleList) else None


def last_mlp(backbone: nn.Module) -> nn.Module | None:
    """Return the MLP of a decoder's last layer, if it maps each token by itself.

    None for anything else: mixtures of experts (whose routers count the tokens they see), models of
    several towers, layers without an ``mlp``, one that takes more than hidden states.
    """
    layers = decoder_layers(backbone)
    if not layers:
        return None
    mlp = getattr(layers[-1], "mlp", None)
    if not isinstance(mlp, nn.Module) or not type(mlp).__name__.endswith("MLP"):
        return None
    if hasattr(mlp, "router") or hasattr(mlp, "experts"):
        return None
    if len(signature(type(mlp).forward).parameters) != 2:  # Bloom's adds the residual itself
        return None
    # A layer that runs again in the backward pass would run without the hooks.
    return None if compiled_or_checkpointed(backbone) else mlp


@contextmanager
def only_at(mlp: nn.Module | None, positions: Tensor) -> Iterator[None]:
    """Until the context ends, a module computes some tokens only and returns zeros for the others.

    It maps hidden states (R, T, D) to such; the tokens are ascending positions among R * T; (P,).
    """
    if mlp is None:
        yield
        return
    shapes: list[torch.Size] = []

    def select(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        (hidden,) = arguments
        shapes.append(hidden.shape)
        return (hidden.flatten(0, -2).index_select(0, positions)[None],)

    def spread(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = shapes.pop()
        everywhere = output.new_zeros(shape.numel() // shape[-1], shape[-1])
        return everywhere.index_copy(0, positions, output[0]).view(shape)

    handles = [mlp.register_forward_pre_hook(select), mlp.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
