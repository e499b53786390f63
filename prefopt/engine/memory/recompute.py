"""Norms and gated MLPs whose backward pass recomputes intermediates instead of storing them.

Linear layers with LoRA adapters compute in one step what peft computes in several (``lora.py``).

Autograd stores an RMSNorm's input and the normalised input, and a gated MLP's gate, up, activated
gate, and their product. Two fifths of what a layer of SmolLM2-135M's shape stores can be recomputed
from the rest elementwise, without a matrix product. Here a norm stores its input and one scale per
token, and an MLP stores gate and up. The forward passes give the same numbers to the last bit: each
class of module is probed for that before its forward pass is replaced; with adapters, the same to
rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn import functional as F

from prefopt.engine.guard import undisturbed
from prefopt.engine.linear_head import is_bare_linear
from prefopt.engine.memory.lora import (
    Adapter,
    inner_gradient,
    is_lora_layer,
    lora_linear,
    plain_adapter,
    product,
)
from prefopt.engine.precision import computing_dtype
from prefopt.engine.quantised import is_quantised

_Forward: TypeAlias = Callable[[Tensor], Tensor]
# Makes the recomputing forward pass of a module.
_Maker: TypeAlias = Callable[[Any], _Forward]

_PROBE_TOKENS = 3


class RecomputingLayers:
    """The modules of a decoder, not yet wrapped for parallel training, that can recompute."""

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self._forwards = _recomputing_forwards(backbone)

    def __len__(self) -> int:
        """Return how many such modules there are."""
        return len(self._forwards)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the forward passes of these modules until the context ends.

        Nothing is replaced without gradients, where nothing is stored for a backward pass; nor if
        layers are compiled, or checkpointed: those run again after this context has ended.
        """
        if not torch.is_grad_enabled() or compiled_or_checkpointed(self._backbone):
            yield
            return
        changed = [
            (module, forward) for module, forward in self._forwards if _has_own_forward(module)
        ]
        for module, forward in changed:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in changed:
                del module.forward


def compiled_or_checkpointed(backbone: nn.Module) -> bool:
    """Whether a part of a model is compiled, or runs again in the backward pass.

    Changes made to its modules for the time of one forward pass have no effect there.
    """
    return any(
        vars(module).get("gradient_checkpointing")
        or vars(module).get("_compiled_call_impl")
        or isinstance(module, CheckpointWrapper)  # by accelerate, for FSDP
        for module in backbone.modules()
    )


def _recomputing_forwards(backbone: nn.Module) -> list[tuple[nn.Module, _Forward]]:
    """Return the modules that can recompute, each with its recomputing forward pass."""
    found: list[tuple[nn.Module, _Forward]] = []
    maker_of: dict[type[nn.Module], _Maker | None] = {}
    for module in backbone.modules():
        makers = _makers_for(module)
        if not makers:
            continue
        kind = type(module)
        if kind not in maker_of:
            maker_of[kind] = next((make for make in makers if _probe(make, module)), None)
        make = maker_of[kind]
        if make is not None:
            found.append((module, make(module)))
    return found


def _makers_for(module: nn.Module) -> Sequence[_Maker]:
    """Return the makers to probe for a module, by its attributes."""
    if not _has_own_forward(module) or any(
        hasattr(weight, "ds_id") for weight in module.parameters()
    ):
        return ()
    if is_lora_layer(module):
        return _ADAPTED
    makers = _MLPS if _is_gated_mlp(module) else _NORMS if _is_norm(module) else ()
    # One argument: the module takes hidden states, and no gate or residual beside them.
    return makers if makers and len(signature(module.forward).parameters) == 1 else ()


def _has_own_forward(module: nn.Module) -> bool:
    """Whether the forward pass is the class's: accelerate and Hub kernels set it on the module."""
    return "forward" not in vars(module)


def _is_gated_mlp(module: nn.Module) -> bool:
    activation = getattr(module, "act_fn", None)
    return (
        all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
        and callable(activation)
        and not any(True for _ in getattr(activation, "parameters", tuple)())
    )


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("RMSNorm") and weight is not None and weight.dim() == 1


def _probe(make: _Maker, module: nn.Module) -> bool:
    """Whether a recomputing forward pass gives what the module's own does, bit by bit."""
    try:
        with undisturbed(module, training=True):  # a module with dropout must be found to differ
            equal = _nearly_equal if _is_adapted(module) else _equal
            return all(
                equal(_output(module, hidden), _output(make(module), hidden))
                for hidden in _probe_inputs(module)
            )
    except Exception:  # whatever fails, the module computes something else
        return False


def _probe_inputs(module: Any) -> list[Tensor]:
    """Return hidden states to probe a module with."""
    if is_lora_layer(module):
        width, dtypes = module.in_features, [_dtype_of(module)]
    elif _is_gated_mlp(module):
        width, dtypes = module.gate_proj.in_features, [_dtype_of(module)]
    else:  # a narrower dtype than that of the weights shows where a norm rounds
        width, dtypes = len(module.weight), [torch.float32, torch.bfloat16]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, _PROBE_TOKENS, width, generator=generator)
    device = next(module.parameters()).device
    return [hidden.to(device, dtype) for dtype in dtypes]


@torch.no_grad()
def _output(forward: _Forward, hidden: Tensor) -> Tensor:
    """Return a module's output, and leave the state of the random numbers as it was."""
    with torch.random.fork_rng([hidden.device] if hidden.is_cuda else []):
        return forward(hidden)


def _with_any_keyword(forward: _Forward) -> _Forward:
    """Accept the one argument of a function under any name."""
    return lambda *arguments, **named: forward(*arguments, *named.values())


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype that a module computes in; quantised weights have another."""
    floating = (weight.dtype for weight in module.parameters() if not is_quantised(weight))
    return next(floating, torch.float32)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def _nearly_equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two outputs differ by the order of sums only."""
    scale = float(theirs.abs().max())
    bound = 100 * torch.finfo(theirs.dtype).eps * scale
    return ours.dtype == theirs.dtype and float((ours - theirs).abs().max()) <= bound


def _is_adapted(module: nn.Module) -> bool:
    return is_lora_layer(module) or any(map(is_lora_layer, module.children()))


# RMSNorm ------------------------------------------------------------------------------------------


class _Style(NamedTuple):
    """How a norm applies its weights: classes differ in where they round.

    Attributes:
        offset: Added to the weights.
        apply: Scales the normalised float32 input by the weights, for input of a dtype.
    """

    offset: float
    apply: Callable[[Tensor, Tensor, torch.dtype], Tensor]


_STYLES = (
    _Style(0.0, lambda normed, weight, dtype: weight * normed.to(dtype)),  # Llama, Qwen, Mistral
    _Style(0.0, lambda normed, weight, dtype: (weight * normed).to(dtype)),  # OLMo 2
    _Style(1.0, lambda normed, weight, dtype: (normed * (1.0 + weight.float())).to(dtype)),  # Gemma
)


class _RMSNorm(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + eps)``, scaled; stores x and its scale per token."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float, style: _Style) -> Tensor:
        exact = hidden.float()
        inverse = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(hidden, weight, inverse)
        ctx.offset = style.offset
        return style.apply(exact * inverse, weight, hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, inverse = ctx.saved_tensors
        gradient = gradient.float()
        factor = weight.float() + ctx.offset
        normed = hidden.float() * inverse
        product = gradient * normed
        of_weight = of_hidden = None
        if ctx.needs_input_grad[1]:
            of_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            # The derivative of the norm removes the component along x.
            along = (product @ factor / factor.numel()).unsqueeze(-1)
            of_hidden = (gradient * factor).addcmul_(normed, along, value=-1).mul_(inverse)
            of_hidden = of_hidden.to(hidden.dtype)
        return of_hidden, of_weight, None, None


def _recomputing_norm(module: Any, style: _Style) -> _Forward:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))

    def forward(hidden: Tensor) -> Tensor:
        normed: Tensor = _RMSNorm.apply(hidden, module.weight, eps, style)  # type: ignore[no-untyped-call] # torch
        return normed

    return _with_any_keyword(forward)


# Gated MLPs ---------------------------------------------------------------------------------------


class _Gated(torch.autograd.Function):
    """``activation(gate) * up``, mapped by a linear layer if its weights are given.

    Stores gate and up; (..., I) each. The weights are (D, I).
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        activation: _Forward,
    ) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.activation = activation
        product = activation(gate) * up
        return product if weight is None else F.linear(product, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        gate, activated = _activated(ctx.activation, gate)
        rows = gradient.flatten(0, -2)
        of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_weight = rows.T @ (activated.detach() * up).flatten(0, -2)
        if ctx.needs_input_grad[3]:
            of_bias = rows.sum(0)
        of_product = gradient if weight is None else gradient @ weight
        return *_gate_gradients(gate, activated, up, of_product), of_weight, of_bias, None


class _GatedAdapted(torch.autograd.Function):
    """``activation(gate) * up``, mapped by a linear layer with an adapter; stores gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: _Forward, *adapter: Any) -> Tensor:
        its = Adapter(*adapter)
        output, inner = product((activation(gate) * up).flatten(0, -2), its)
        ctx.save_for_backward(gate, up, inner, its.weight, its.down, its.up)
        ctx.activation, ctx.scale, ctx.state = activation, its.scale, its.state
        return output.view(*gate.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, inner, weight, down, of_adapter = ctx.saved_tensors
        its = Adapter(weight, None, down, of_adapter, ctx.scale, ctx.state)
        gate, activated = _activated(ctx.activation, gate)
        rows = gradient.flatten(0, -2)
        of_inner = inner_gradient(rows, its)
        of_down = of_inner.T @ (activated.detach() * up).flatten(0, -2)
        of_up = (rows.T @ inner).mul_(its.scale)
        of_product = (rows @ its.dense()).addmm_(of_inner, down).view_as(gate)
        of_inputs = _gate_gradients(gate, activated, up, of_product)
        return *of_inputs, None, None, None, of_down, of_up, None, None


def _activated(activation: _Forward, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gate as a leaf, and what its activation makes of it, again."""
    with torch.enable_grad():
        gate = gate.detach().requires_grad_()
        return gate, activation(gate)


def _gate_gradients(
    gate: Tensor, activated: Tensor, up: Tensor, of_product: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients by gate and up of the product of activated gate and up."""
    of_up = of_product * activated.detach()
    (of_gate,) = torch.autograd.grad(activated, gate, of_product * up)
    return of_gate, of_up


def _recomputing_mlp(module: Any) -> _Forward:
    def forward(hidden: Tensor) -> Tensor:
        gate, up = module.gate_proj(hidden), module.up_proj(hidden)
        down = module.down_proj
        output: Tensor
        plain = gate.dtype == up.dtype == computing_dtype(gate)
        adapter = plain_adapter(down, gate) if plain and is_lora_layer(down) else None
        if adapter is not None:
            output = _GatedAdapted.apply(gate, up, module.act_fn, *adapter)  # type: ignore[no-untyped-call] # torch
        elif plain and is_bare_linear(down):
            weight = down.weight.to(gate.dtype)  # as autocast would
            bias = None if down.bias is None else down.bias.to(gate.dtype)
            output = _Gated.apply(gate, up, weight, bias, module.act_fn)  # type: ignore[no-untyped-call] # torch
        else:  # other adapters, quantised weights: their own forward pass, with what it stores
            output = down(_Gated.apply(gate, up, None, None, module.act_fn))  # type: ignore[no-untyped-call] # torch
        return output

    return _with_any_keyword(forward)


# Adapters -----------------------------------------------------------------------------------------


def _adapted_linear(module: Any) -> _Forward:
    def forward(hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        adapter = None if arguments or named else plain_adapter(module, hidden)
        if adapter is None:
            output: Tensor = type(module).forward(module, hidden, *arguments, **named)
            return output
        return lora_linear(hidden, adapter)

    return forward


_NORMS: Sequence[_Maker] = [partial(_recomputing_norm, style=style) for style in _STYLES]
_MLPS: Sequence[_Maker] = [_recomputing_mlp]
_ADAPTED: Sequence[_Maker] = [_adapted_linear]
