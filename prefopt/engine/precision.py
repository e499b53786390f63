"""In which dtype numbers are computed."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of products with a tensor: autocast's where that is on, or its own.

    For what autocast does not cast: arguments of custom autograd functions and of other kernels,
    and queries that a rotary embedding in float32 has widened. As under autocast, float64 stays.
    """
    device = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype
