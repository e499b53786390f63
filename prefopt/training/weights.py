"""Weights that are not finite, or would not stay so: named before training and before saving."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.quantised import inner_tensors
from prefopt.reference.processes import Processes

logger = logging.getLogger("prefopt")

# What to do about weights that are not finite.
BROKEN = "it was saved by a run that failed, or its file is damaged: take an earlier one"
TOO_HIGH = "the learning rate was too high for it: go on from a checkpoint with a lower one"


class NonFiniteError(ValueError):
    """A loss, a gradient norm or a weight is NaN or infinite.

    Attributes:
        exit_code: That of a command that ends with it.
    """

    exit_code = 1


def check_weights(
    model: Any,
    what: str,
    hint: str,
    processes: Processes | None = None,
    trained_only: bool = False,
) -> None:
    """Raise where weights are not finite; with several processes in all of them.

    A pass over the weights, and one wait for the accelerator.

    Args:
        model: A model, sharded or not; what a process does not hold is not looked at in it.
        what: What to call it.
        hint: What to do about it.
        processes: Those that hold it together; None for this one alone.
        trained_only: Whether only what is trained can have changed.

    Raises:
        NonFiniteError: Naming the first of them.
    """
    tensors = list(_tensors(model, trained_only))
    found = _not_finite(tensors)
    if processes is not None:
        found = [name for its in processes.all(found) for name in its]
    if not found:
        return
    halves = any(tensor.dtype == torch.float16 for _, tensor in tensors)
    raise NonFiniteError(
        f"{what} holds NaN or infinite weights, in {len(set(found))} tensors, the first is "
        f"{found[0]}; {hint}"
        + (" (float16 holds nothing above 65504: use bfloat16 or float32)" if halves else "")
    )


def _tensors(model: nn.Module, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield what this process holds of the weights, and of the scales of quantised ones."""
    for name, parameter in model.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        sharded = getattr(parameter, "ds_tensor", None)  # ZeRO-3
        # bitsandbytes; where FSDP2 shards a weight, only its layer still knows.
        layer = model.get_submodule(name.rpartition(".")[0])
        state = getattr(parameter, "quant_state", None)
        if state is None and name.endswith(".weight"):
            state = getattr(layer, "quant_state", None)
        scales = [getattr(its, "absmax", None) for its in (state, getattr(state, "state2", None))]
        # Bits of 4-bit weights may be stored as if they were floats, and look like NaN.
        held = None if state is not None else parameter if sharded is None else sharded
        for tensor in (held, *scales, getattr(parameter, "SCB", None)):
            for part in _plain(tensor):
                yield name, part


def _plain(tensor: Any) -> Iterator[Tensor]:
    """Yield the plain tensors of floating point that a tensor is made of."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return
    if hasattr(tensor, "to_local"):  # sharded
        yield from _plain(tensor.to_local())
    elif parts := inner_tensors(tensor):  # quantised
        for part in parts.values():
            yield from _plain(part)
    elif tensor.numel() and tensor.device.type != "meta":
        yield tensor.detach()


@torch.no_grad()
def _not_finite(tensors: Sequence[tuple[str, Tensor]]) -> list[str]:
    """Return the names of tensors that hold a number that is not finite: a wait per device."""
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        if tensor.dtype.itemsize == 1:  # float8 has no such arithmetic
            tensor = tensor.to(torch.bfloat16)
        extremes = torch.stack(tensor.aminmax())  # NaN is either; no copy of the weights is made
        by_device.setdefault(tensor.device, []).append((name, extremes.isfinite().all()))
    return [
        name
        for pairs in by_device.values()
        for (name, _), finite in zip(
            pairs, torch.stack([flag for _, flag in pairs]).tolist(), strict=True
        )
        if not finite
    ]


def _trained_halves(model: nn.Module) -> list[str]:
    """Return the names of weights in float16 that are trained."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dtype == torch.float16
    ]


def check_trainable_dtype(model: nn.Module, keeps_float32: bool) -> None:
    """Raise where weights in float16 are to be trained: their updates under- and overflow.

    Args:
        model: The policy.
        keeps_float32: Whether the launch keeps a copy in float32 (DeepSpeed; FSDP with mixed
            precision).

    Raises:
        ValueError: Saying what to do instead.
    """
    halves = _trained_halves(model)
    if halves and not keeps_float32:
        raise ValueError(
            f"{len(halves)} tensors of the model are to be trained in float16, the first is "
            f"{halves[0]}: small gradients vanish in it and large weights overflow. Load the model "
            "in float32 (the default; with fp16=True it computes in float16) or in bfloat16"
        )


def train_in_float32(model: nn.Module, keeps_float32: bool) -> None:
    """Cast a model that would be trained in float16 to float32, in place, and warn of it.

    Args:
        model: The policy.
        keeps_float32: As for ``check_trainable_dtype``; then nothing is cast.

    Raises:
        ValueError: If it is quantised, as ``check_trainable_dtype`` does.
    """
    if getattr(model, "is_quantized", False):
        check_trainable_dtype(model, keeps_float32)
    if keeps_float32 or not _trained_halves(model):
        return
    # Buffers that are not saved stay as they are: that they were rounded, the fingerprint must see.
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.dtype == torch.float16:
            tensor.data = tensor.data.float()
    logger.warning(
        "the model is in float16 and is trained in float32: in float16 AdamW's second moments "
        "vanish and its steps get thousands of times too long. With fp16=True it computes in "
        "float16"
    )
