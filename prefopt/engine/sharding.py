"""Models whose weights FSDP2 spreads over the processes, in place: there is no wrapper to call.

Each process keeps a part of every weight. The model's own forward pass gathers them, and the
backward pass again, so that whatever scores must run inside it, in every process at once. Some
weights stay gathered until the next backward pass; what changes parts must put them away first.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from prefopt.engine.own_forward import forward_once

T = TypeVar("T")

# What accelerate puts into the names of weights when it checkpoints layers.
_CHECKPOINTED = "_checkpoint_wrapped_module."


def is_fsdp2(model: nn.Module | None) -> TypeGuard[nn.Module]:
    """Whether FSDP2 shards a model."""
    return isinstance(model, FSDPModule)


def in_own_forward(model: nn.Module, compute: Callable[[], T], *arguments: Tensor) -> T:
    """Run ``compute`` as the forward pass of a model, so that its hooks run around it.

    The result is as computed: what leaves the forward pass of FSDP2 may be rounded to the dtype of
    its mixed precision, which is too coarse for log-probs.
    """
    computed: list[T] = []

    def noted() -> T:
        computed.append(compute())
        return computed[-1]

    with forward_once(model, noted):
        model(*arguments)
    return computed[-1]


def put_away(model: nn.Module) -> None:
    """Free what is gathered of a model's weights, so that they are gathered anew."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def weights_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model under the names that they have before it is sharded."""
    return {name.replace(_CHECKPOINTED, ""): it for name, it in model.named_parameters()}


def own_parts(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what of some weights this process keeps.

    Args:
        model: As it is sharded.
        weights: By name, each whole or this process's part already.
    """
    parameters = weights_by_name(model)
    return {name: _own_part(weight, parameters[name]) for name, weight in weights.items()}


def _own_part(weight: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):  # FSDP2 was told to leave it whole
        return weight.to(parameter.device, parameter.dtype)
    local = parameter.to_local()
    if weight.shape == parameter.shape != local.shape:
        # Each process has the whole, so nothing is sent.
        whole = weight.to(local.device, local.dtype)
        mesh, placements = parameter.device_mesh, parameter.placements
        weight = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local().clone()
    assert weight.shape == local.shape
    return weight.to(local.device, local.dtype)


@contextmanager
def parts_exchanged(model: nn.Module, parts: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, a sharded model has other weights: these parts, by name; they hold its own meanwhile.

    FSDP2 gathers from memory of its own, so that values change places, and not tensors.
    """
    put_away(model)
    _exchange(model, parts)
    try:
        yield
    finally:
        put_away(model)
        _exchange(model, parts)


@torch.no_grad()
def _exchange(model: nn.Module, parts: Mapping[str, Tensor]) -> None:
    parameters = weights_by_name(model)
    for name, part in parts.items():
        parameter = parameters[name]
        mine = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        kept = mine.clone()
        mine.copy_(part)
        part.copy_(kept)
