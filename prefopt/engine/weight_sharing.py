"""A second module around the same weights, which sees nothing of what happens to the first."""

import copy
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def twin_of(module: M, copied: bool = False) -> M:
    """Return a module like another as it is now, around the same weights, without gradients.

    It costs its modules and no memory worth counting. Adapters, modes and gradients of the one are
    not those of the other; nor are weights that are swapped for others.

    Args:
        module: Of which all weights are in this process.
        copied: Whether weights that are trained are copied, so that the twin stays as it is.
    """
    return copy.deepcopy(module, _shared(module, copied))


def _shared(module: nn.Module, copied: bool) -> dict[int, Any]:
    """Return what a deep copy of a module need not copy, by ``id``, as ``copy.deepcopy`` wants."""
    shared: dict[int, Any] = {}
    for parameter in module.parameters():
        twin: Any = parameter
        if parameter.requires_grad or type(parameter) is nn.Parameter:
            # A parameter of its own, so that freezing the twin leaves the gradient to the other.
            data = parameter.detach()
            data = data.clone() if copied and parameter.requires_grad else data
            twin = nn.Parameter(data, requires_grad=False)
        shared[id(parameter)] = twin
        for value in vars(parameter).values():  # how quantised weights are read
            if not isinstance(value, nn.Module):  # some know in which module they are
                shared[id(value)] = value
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    for part in module.modules():
        for value in vars(part).values():
            if type(value).__name__ == "MatmulLtState":  # 8-bit weights of bitsandbytes
                shared[id(value)] = value
    return shared
