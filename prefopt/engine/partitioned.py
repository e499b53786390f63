"""Weights that ZeRO-3 keeps in parts, one in each process: gathered where they are read.

Between uses such a weight is empty. DeepSpeed's engine gathers those of a layer when the layer is
called; what is asked of a model before the engine exists, or beside it, gathers them here, layer
by layer too, so that no process holds more than the weights of one layer. Every process must ask
the same at the same time.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_partitioned(model: nn.Module) -> bool:
    """Whether weights of a model are partitioned by DeepSpeed (ZeRO-3)."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def is_engine(wrapped: nn.Module | None) -> bool:
    """Whether a wrapper is DeepSpeed's engine.

    It reduces gradients in the order in which the backward pass makes them, which must be the same
    in all processes: one without tokens must go through all layers too.
    """
    return any(kind.__module__.startswith("deepspeed.") for kind in type(wrapped).__mro__)


def whole_shape(parameter: Tensor) -> torch.Size:
    """Return the shape of a weight, of a partitioned one that of the whole."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


@contextmanager
def whole(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these weights are whole in each process; they take their full memory there."""
    away = [parameter for parameter in parameters if _is_away(parameter)]
    if not away:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(away):
        yield


@contextmanager
def whole_where_used(model: nn.Module) -> Iterator[None]:
    """Inside, each layer of a model has its weights whole while it is called; without gradient."""
    owners = [
        module
        for module in model.modules()
        if any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False))
    ]
    open_stacks: list[ExitStack] = []

    def gather(module: nn.Module, *_: Any) -> None:
        stack = ExitStack()
        stack.enter_context(whole(module.parameters(recurse=False)))
        open_stacks.append(stack)

    def release(*_: Any) -> None:
        open_stacks.pop().close()

    with ExitStack() as hooks:
        for owner in owners:
            before = owner.register_forward_pre_hook(gather)
            after = owner.register_forward_hook(release, always_call=True)
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield


def own_part(parameter: Tensor) -> Tensor:
    """Return the part of a partitioned weight that this process keeps; any other weight whole.

    Raises:
        ValueError: If DeepSpeed keeps the part on a disk.
    """
    part: Any = getattr(parameter, "ds_tensor", parameter)
    if part is not parameter and part.status.name != "AVAILABLE":
        raise ValueError(
            "reference='live' copies the policy's weights, which DeepSpeed keeps on a disk "
            "(offload_param to nvme): use reference='cached', or offload them to the CPU"
        )
    kept: Tensor = part
    return kept


@contextmanager
def parts_replaced(replaced: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, partitioned weights are gathered from other parts: those given with each.

    Every process must enter, with its own.
    """
    parameters = [parameter for parameter, _ in replaced]
    current = [own_part(parameter).data for parameter in parameters]
    _put_away(parameters)
    for parameter, part in replaced:
        own_part(parameter).data = part
    try:
        yield
    finally:
        _put_away(parameters)
        for parameter, part in zip(parameters, current, strict=True):
            own_part(parameter).data = part


def _put_away(parameters: Iterable[Any]) -> None:
    """Empty weights that are gathered, so that they are gathered anew."""
    here = [it for it in parameters if hasattr(it, "ds_id") and not _is_away(it)]
    if here:
        here[0].partition(param_list=here)


def _is_away(parameter: Tensor) -> bool:
    status = getattr(parameter, "ds_status", None)
    return status is not None and status.name != "AVAILABLE"
