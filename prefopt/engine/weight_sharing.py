"""Copies of a module around the same weights."""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copy_sharing_weights(module: M, copy_trained: bool = False, same: bool = False) -> M:
    """Return a copy of a module around the same weights, without gradients.

    The copy has modules of its own, which take no memory worth counting. Adapters, modes and
    gradients of the original do not reach it; nor do weights that replace others there. All weights
    must be in this process. ``copy_trained`` copies weights that require gradients, so that
    training the original leaves the copy as it is; with ``same`` the copy has the very parameters.
    """
    memo = _not_copied(module, copy_trained)
    if same:
        memo |= {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, memo)


def _not_copied(module: nn.Module, copy_trained: bool) -> dict[int, Any]:
    """Return the replacement of each weight by ``id``: the memo that ``copy.deepcopy`` takes."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        shared: Any = parameter
        if parameter.requires_grad or type(parameter) is nn.Parameter:
            # A parameter of its own: freezing the copy must not freeze the original.
            data = parameter.detach()
            data = data.clone() if copy_trained and parameter.requires_grad else data
            shared = nn.Parameter(data, requires_grad=False)
        memo[id(parameter)] = shared
        for value in vars(parameter).values():  # the state that reads quantised weights
            if not isinstance(value, nn.Module):  # some refer to the module they belong to
                memo[id(value)] = value
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    for part in module.modules():
        for value in vars(part).values():
            if type(value).__name__ == "MatmulLtState":  # 8-bit weights of bitsandbytes
                memo[id(value)] = value
        # Views of other weights, which peft keeps of adapters that are tied to each other.
        for view in _tensors_in(getattr(part, "kwargs", None)):
            memo[id(view)] = view.detach()
    return memo


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a dictionary, and in dictionaries in it."""
    for item in value.values() if isinstance(value, dict) else ():
        if isinstance(item, Tensor):
            yield item
        yield from _tensors_in(item)
