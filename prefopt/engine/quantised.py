"""Quantised weights: which they are, and how they are kept in a form in which they can be trained.

On a CPU that multiplies in bf16, bitsandbytes (0.50) rewrites the 4-bit weights of a layer for good
at its first forward pass in evaluation mode. Their scales are rounded to bf16 then, and the kernel
that reads them has no backward pass: after one pass of a reference or an evaluation, no gradient
reaches what lies below the layer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.guard import is_8bit, keep_unpacked, undisturbed


def keep_trainable(model: nn.Module) -> None:
    """Prevent bitsandbytes from packing a model's 4-bit weights for inference on CPU.

    Raises:
        ValueError: If weights have been packed already.
    """
    for name, layer in model.named_modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(
                f"the 4-bit weights of {name} were packed for inference by a forward pass in "
                "evaluation mode on CPU, such as `generate`; bitsandbytes rounds them then, and "
                "they cannot be trained: load the model again, and train before you generate"
            )
    keep_unpacked(model.modules())


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight is stored in fewer bits than it stands for, so that no step can change it.

    That is: as whole numbers, as floats of one byte, as bits packed into floats of any size
    (bitsandbytes' ``quant_storage``), or as a tensor that is made of others, such as numbers and
    their scales (torchao, quanto).
    """
    packed = getattr(weight, "quant_state", None) is not None
    plain = weight.is_floating_point() and weight.dtype.itemsize > 1 and not packed
    # A DTensor, which is made of another too, is a part of a weight.
    return not plain or (
        hasattr(weight, "__tensor_flatten__") and not hasattr(weight, "placements")
    )


def state_of_4_bits(layer: nn.Module, dtype: torch.dtype) -> Any:
    """Return how a layer's 4-bit weights are stored; None if it does more than multiply by them.

    Args:
        layer: Of whatever kind.
        dtype: Of its input; None is returned if the layer would compute in another, or if its
            weights were dense in another.
    """
    weight = layer._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    if type(layer).__module__ != "bitsandbytes.nn.modules" or state is None:
        return None
    packed = getattr(state, "packing_format_for_cpu", False)
    computes_in = layer.compute_dtype if layer.compute_type_is_set else dtype
    own = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    # Of a transposed weight (O, I) cannot be told from (I, O).
    shape = (layer.out_features, layer.in_features)
    plain = not packed and not own and computes_in == state.dtype == dtype
    return state if plain and tuple(state.shape) == shape else None


def dequantised(weight: Tensor, state: Any) -> Tensor:
    """Return what 4-bit weights stand for, in the dtype that they had; (O, I)."""
    from bitsandbytes.functional import dequantize_4bit  # not needed where nothing is in 4 bits

    dense: Tensor = dequantize_4bit(weight.detach().view(-1, 1), state)
    return dense


def inner_tensors(tensor: Tensor) -> dict[str, Any]:
    """Return what a tensor is made of by name, and under ``""`` how; empty for a plain one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return {}
    names, how = tensor.__tensor_flatten__()
    return {"": how} | {name: getattr(tensor, name) for name in names}


def rounds_inputs(module: nn.Module, device: str) -> bool:
    """Whether a layer quantises what it is given, not only its weights.

    Args:
        module: The layer.
        device: The type of device it computes on: 8-bit layers of bitsandbytes, as they are asked
            here, are exact on a CPU.
    """
    if is_8bit(module):
        return device == "cuda"
    if getattr(module, "activation_qtype", None) is not None:  # quanto
        return True
    weight = module._parameters.get("weight")
    how = None if weight is None else inner_tensors(weight).get("")
    named = how if isinstance(how, dict) else {}
    return any(named.get(name) for name in ("act_quant_kwargs", "activation_quantization")) or (
        type(weight).__name__ == "LinearActivationQuantizedTensor"
    )


def layer_without_gradient(model: Any) -> str | None:
    """Return the name of a quantised layer whose gradient is not that of what it computes.

    One layer of each kind is tried: on two inputs, whose difference the gradient must explain.
    Layers that round their inputs (torchao's dynamic ones) let none through, in silence.

    Args:
        model: A transformers model, with adapters or without.
    """
    kinds = set()
    with undisturbed(model, training=True):
        for name, layer in model.named_modules():
            stored = [*layer._parameters.values(), *layer._buffers.values()]
            weights = [it for it in stored if it is not None and it.dim() > 1 and is_quantised(it)]
            if not weights or not hasattr(layer, "in_features"):
                continue
            kind = (type(layer), *((type(it), it.dtype) for it in weights))
            if kind not in kinds and not _passes_gradient(layer, weights[0].device, model.dtype):
                return str(name)
            kinds.add(kind)
    return None


@torch.enable_grad()
def _passes_gradient(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    size = (1, 4, int(layer.in_features))  # type: ignore[arg-type] # a linear layer of whatever kind
    one, other = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(2))
    one.requires_grad_()
    try:
        result, difference = layer(one), (layer(one) - layer(other)).detach()
        (gradient,) = torch.autograd.grad((result * difference).sum(), one)
    except (RuntimeError, NotImplementedError):
        return False
    explained = (gradient * (one - other)).float().sum()
    return bool((explained / difference.float().square().sum() - 1).abs() < 0.1)
