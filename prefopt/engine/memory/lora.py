"""A linear layer with a LoRA adapter in one autograd function, which writes its output once.

peft computes ``base(x) + lora_B(lora_A(x)) * scaling`` in steps, each of which writes a tensor of
the output's size: the adapter's output, its multiple, the sum; and the same again in the backward
pass. Here the adapter's product is accumulated in the output of the base layer, and its gradient
in that of the input, as matrix products can. Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large
Language Models", arXiv:2106.09685, Eq. 3. 4-bit weights of the layer itself (QLoRA, Dettmers et al.
2023, arXiv:2305.14314) are made dense for the time of one matrix product, in either pass.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from prefopt.engine.linear_head import is_bare_linear
from prefopt.engine.precision import computing_dtype
from prefopt.engine.quantised import dequantised, state_of_4_bits

# peft's layers: around plain weights, and around 4-bit ones of bitsandbytes.
_LAYERS = {("peft.tuners.lora.layer", "Linear"), ("peft.tuners.lora.bnb", "Linear4bit")}
# What autocast casts.
_CAST = (torch.float32, torch.bfloat16, torch.float16)


class Adapter(NamedTuple):
    """The one active adapter of a layer whose own weights are frozen.

    Attributes:
        weight: Of the layer itself, as it is stored; (O, I) where it is dense.
        bias: The same, or None; (O,), as the rest in the dtype that the layer computes in.
        down: ``lora_A``; (R, I).
        up: ``lora_B``; (O, R).
        scale: Of the adapter's product.
        state: How 4-bit weights are stored; None for dense ones.
    """

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    scale: float
    state: Any = None

    def dense(self) -> Tensor:
        """Return the weight of the layer itself, to compute with; (O, I)."""
        if self.state is not None:
            return dequantised(self.weight, self.state)
        return self.weight.to(self.down.dtype)


def is_lora_layer(module: nn.Module) -> bool:
    """Whether a module is peft's linear layer with LoRA adapters, of whatever state."""
    return (type(module).__module__, type(module).__name__) in _LAYERS


def plain_adapter(module: Any, hidden: Tensor) -> Adapter | None:
    """Return the adapter of a layer; None where peft computes something else than Eq. 3.

    That is so if adapters are merged, disabled, several, of a variant (DoRA and others) or with
    dropout, if the base layer is no plain frozen one, dense or in 4 bits, or if dtypes differ and
    autocast does not make them one.

    Args:
        module: A layer of which ``is_lora_layer`` holds.
        hidden: Its input.
    """
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or module.merged or len(active) != 1:
        return None
    (name,) = active
    down, up, base = module.lora_A[name], module.lora_B[name], module.base_layer
    dropout = module.lora_dropout[name]
    drops = getattr(dropout, "p", 0.0) > 0 and module.training
    dtype = computing_dtype(hidden)
    state = state_of_4_bits(base, dtype)
    bare = all(is_bare_linear(one) for one in ((base, down, up) if state is None else (down, up)))
    if not bare or drops or name in module.lora_variant or up.bias is not None:
        return None
    bias = base.bias
    own = [base.weight] if bias is None else [base.weight, bias]
    if any(one.requires_grad for one in own):
        return None
    autocast = dtype in _CAST and torch.is_autocast_enabled(hidden.device.type)
    dense = [down.weight, up.weight, *(own if state is None else own[1:])]
    if any(one.dtype not in (_CAST if autocast else (dtype,)) for one in dense):
        return None
    if hidden.dtype != dtype and state is not None:  # bitsandbytes has rules of its own
        return None
    # Autocast does not cast the weights of an autograd function.
    bias = None if bias is None else bias.to(dtype)
    low, high = down.weight.to(dtype), up.weight.to(dtype)
    return Adapter(base.weight, bias, low, high, float(module.scaling[name]), state)


def lora_linear(hidden: Tensor, adapter: Adapter) -> Tensor:
    """Return the output of a layer with its adapter; (..., O).

    Args:
        hidden: (..., I).
        adapter: Weights.
    """
    output: Tensor = _LoRALinear.apply(hidden, *adapter)  # type: ignore[no-untyped-call] # torch
    return output


def product(rows: Tensor, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """Return the output, (B, O), and the adapter's inner product, (B, R), of some rows, (B, I)."""
    inner = rows @ adapter.down.T
    output = F.linear(rows, adapter.dense(), adapter.bias)
    return output.addmm_(inner, adapter.up.T, alpha=adapter.scale), inner


def inner_gradient(gradient: Tensor, adapter: Adapter) -> Tensor:
    """Return the gradient by the adapter's inner product; (B, R), of that by the output, (B, O)."""
    return (gradient @ adapter.up).mul_(adapter.scale)


class _LoRALinear(torch.autograd.Function):
    """Stores its input, as it is given, and the adapter's inner product."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *adapter: Any) -> Tensor:
        its = Adapter(*adapter)
        output, inner = product(hidden.flatten(0, -2).to(its.down.dtype), its)
        ctx.save_for_backward(hidden, inner, its.weight, its.down, its.up)
        ctx.scale, ctx.state = its.scale, its.state
        return output.view(*hidden.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, inner, weight, down, up = ctx.saved_tensors
        its = Adapter(weight, None, down, up, ctx.scale, ctx.state)
        rows = gradient.flatten(0, -2)
        of_inner = inner_gradient(rows, its)
        of_hidden = of_down = None
        if ctx.needs_input_grad[0]:
            of_hidden = (rows @ its.dense()).addmm_(of_inner, down).view_as(hidden).to(hidden.dtype)
        if ctx.needs_input_grad[3]:
            of_down = of_inner.T @ hidden.flatten(0, -2).to(down.dtype)
        of_up = (rows.T @ inner).mul_(its.scale) if ctx.needs_input_grad[4] else None
        return of_hidden, None, None, of_down, of_up, None, None
