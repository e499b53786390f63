"""The ``varlen`` backend: one kernel call per layer, on CUDA in half precision.

A packed row becomes N sequences, each with the keys of its whole path and the queries at its end:
flash attention's causal mask is aligned there, so the kernel sees plain causal attention. A segment
that continues the one before it, as the first branch continues its prompt, belongs to the same
sequence; without branches nothing is copied at all.

The keys and values that branches share are copied once for each branch, and autograd stores the
copies until the backward pass: 2 * kv_heads * head_dim numbers per copied token and layer. Counted
on Llama-3.2-1B, that is 2 KiB in bfloat16 beside some 80 KiB that are stored for a token of the
row, so that each completion after the first adds 2.5% of its prompt's memory. A separate call for
the prompt, with both outputs joined by their normalisers, would avoid the copies; it needs twice
the calls and a backward pass of our own, and it cannot express sliding windows. With a window, only
the keys that are seen are copied.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.engine.attention.plan import AttentionOptions, AttentionPlan, LayerFacts
from prefopt.engine.attention.segments import attend_by_segments

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class VarlenKernel:
    """A kernel for attention of sequences of different lengths.

    Attributes:
        name: The library it comes from.
        run: Maps (T, heads, d) queries, (S, kv_heads, d) keys and values, the sequences and the
            options to (T, heads, d).
        softcap: Whether it can cap scores.
        dropout: Whether it can drop attention weights.
    """

    name: str
    run: Callable[[Tensor, Tensor, Tensor, "Sequences", AttentionOptions], Tensor]
    softcap: bool
    dropout: bool


@dataclass(frozen=True)
class Sequences:
    """A packed row as N sequences, queries at the end of the keys.

    Attributes:
        gather: Place of each sequence's keys among the keys of the row, one sequence after the
            other, int32; (K,). None where that is the row itself.
        query_ends: First query of each sequence and the end of the last, int32; (N + 1,).
        key_ends: The same of the gathered keys.
        most_queries: Queries of the longest sequence.
        most_keys: Keys of the longest sequence.
    """

    gather: Tensor | None
    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int

    def borders(self) -> tuple[Tensor, Tensor, int, int]:
        """Return ends and greatest lengths of the sequences, in the order of kernels' arguments."""
        return self.query_ends, self.key_ends, self.most_queries, self.most_keys


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, options: AttentionOptions
) -> Tensor:
    """Attend by one call of a varlen kernel; see ``prefopt.engine.attention.plan.Attend``.

    Calls that the kernel cannot compute, as in a float32 forward pass outside autocast, are
    computed segment by segment.
    """
    kernel = kernel_for(options.softcap is not None, options.dropout > 0)
    if kernel is None or query.dtype not in HALF:
        return attend_by_segments(query, key, value, plan, options)
    sequences = plan.prepare(make_sequences, options.window, query.device)
    keys, values = (tensor[0].transpose(0, 1) for tensor in (key, value))
    if sequences.gather is not None:
        keys = keys.index_select(0, sequences.gather)
        values = values.index_select(0, sequences.gather)
    output = kernel.run(query[0].transpose(0, 1), keys, values, sequences, options)
    return output.transpose(0, 1)[None]


def varlen_problem(
    layer: LayerFacts, dropout: bool, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return why this backend cannot attend in such a layer here, or None if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and the model is on {device.type}"
    if dtype not in HALF:
        return f"it computes in bfloat16 or float16, and the model in {str(dtype)[6:]}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (A100) or later"
    if not kernels():
        return "it needs torch 2.11 or later, or flash-attn"
    if layer.sinks:
        return "it cannot have attention sinks"
    if layer.head_dim != layer.value_dim or layer.head_dim % 8 or layer.head_dim > 256:
        return (
            f"it cannot have heads of {layer.head_dim} (values of {layer.value_dim}); "
            "multiples of 8 up to 256, both the same"
        )
    if kernel_for(layer.softcap is not None, dropout) is None:
        wanted = "cap scores" if layer.softcap is not None else "drop attention weights"
        return f"torch's kernel cannot {wanted}; install flash-attn"
    return None


# Sequences --------------------------------------------------------------------------------------


def make_sequences(plan: AttentionPlan, window: int | None, device: torch.device) -> Sequences:
    """Return the sequences of a row; with a window in tokens, without keys that no query sees."""
    firsts = [
        index
        for index in range(plan.first, len(plan.segments))
        if index == plan.first or plan.segments[index].ancestors != plan.path(index - 1)
    ]
    starts, offset = plan.starts, plan.query_offset
    ends = [*firsts[1:], len(plan.segments)]
    places = [plan.key_places(plan.path(end - 1)) for end in ends]
    if window is not None:
        unseen = [max(0, int(plan.depths[first]) - window + 1) for first in firsts]
        places = [path[cut:] for path, cut in zip(places, unseen, strict=True)]
    query_ends = np.append(starts[firsts], starts[-1]) - offset
    key_ends = np.cumsum([0, *map(len, places)])
    gather = np.concatenate(places)
    untouched = len(gather) == starts[-1] and bool((np.diff(gather) == 1).all())
    tensors = _to_device([query_ends, key_ends, *([] if untouched else [gather])], device)
    return Sequences(
        gather=None if untouched else tensors[2],
        query_ends=tensors[0],
        key_ends=tensors[1],
        most_queries=int(np.diff(query_ends).max()),
        most_keys=int(np.diff(key_ends).max()),
    )


def _to_device(arrays: list[Any], device: torch.device) -> tuple[Tensor, ...]:
    """Return arrays as int32 tensors, moved in one copy and without waiting for the device."""
    whole = torch.from_numpy(np.concatenate(arrays).astype(np.int32))
    if device.type == "cuda":
        whole = whole.pin_memory().to(device, non_blocking=True)
    parts: tuple[Tensor, ...] = torch.split(whole, [len(array) for array in arrays])
    return parts


# Kernels ----------------------------------------------------------------------------------------


def kernel_for(softcap: bool, dropout: bool) -> VarlenKernel | None:
    """Return the first kernel that can cap scores and drop weights, where that is wanted."""
    for kernel in kernels():
        if (kernel.softcap or not softcap) and (kernel.dropout or not dropout):
            return kernel
    return None


@cache
def kernels() -> tuple[VarlenKernel, ...]:
    """Return the kernels installed: torch's own from 2.11 on, flash-attn's from 2.6 on."""
    found = []
    torchs = _function("torch.nn.attention.varlen", "varlen_attn", "window_size")
    if torchs is not None:
        found.append(VarlenKernel("torch", _torch_run(torchs), softcap=False, dropout=False))
    flash = _function("flash_attn", "flash_attn_varlen_func", "softcap")
    if flash is not None:
        found.append(VarlenKernel("flash-attn", _flash_run(flash), softcap=True, dropout=True))
    return tuple(found)


def _function(module: str, name: str, parameter: str) -> Any:
    """Return a function if it is installed and new enough to have this parameter."""
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, OSError):  # OSError: built for another torch
        return None
    return function if parameter in inspect.signature(function).parameters else None


def _torch_run(function: Any) -> Any:
    # Before 2.12 there is no such parameter, and fewer key-value heads are allowed without it.
    grouped = "enable_gqa" in inspect.signature(function).parameters

    return lambda query, key, value, sequences, options: function(
        query,
        key,
        value,
        *sequences.borders(),
        scale=options.scaling,
        window_size=_window(options),
        **({"enable_gqa": True} if grouped else {}),
    )


def _flash_run(function: Any) -> Any:
    return lambda query, key, value, sequences, options: function(
        query,
        key,
        value,
        *sequences.borders(),
        dropout_p=options.dropout,
        softmax_scale=options.scaling,
        causal=True,
        window_size=_window(options),
        softcap=options.softcap or 0.0,
    )


def _window(options: AttentionOptions) -> tuple[int, int]:
    """Return how many tokens before and after itself a token sees; -1 for all."""
    return (-1 if options.window is None else options.window - 1, 0)
