"""Norms and gated MLPs that keep less of the forward pass for the backward pass.

Left to autograd, an RMSNorm keeps its input and the normed input, and a gated MLP keeps gate, up,
the activated gate, and their product: of what a layer of SmolLM2-135M's shape keeps, two fifths can
be worked out again from the rest by a pass over it, without a matrix product. Here a norm keeps its
input, and an MLP keeps gate and up. Their forward passes give the same numbers to the last bit, and
a module is taken only after one of its class has been seen to.
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

from prefopt.engine.linear_head import computing_dtype, is_bare_linear
from prefopt.engine.probe import in_mode

_Forward: TypeAlias = Callable[[Tensor], Tensor]
# Makes the other forward pass of a module.
_Maker: TypeAlias = Callable[[Any], _Forward]

_PROBE_TOKENS = 3


class LeanLayers:
    """The modules of a model that can keep less, and what they compute instead.

    Args:
        backbone: A decoder, before anything wraps it for parallel training.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self._forwards = _lean_forwards(backbone)

    def __len__(self) -> int:
        """Return how many modules there are."""
        return len(self._forwards)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it, these modules keep less for the backward pass of what they compute.

        Without gradients nothing is kept anyway; and layers that are compiled, or computed again by
        a checkpoint when this context is long left, stay as they are.
        """
        if not torch.is_grad_enabled() or compiled_or_checkpointed(self._backbone):
            yield
            return
        changed = [(module, forward) for module, forward in self._forwards if _is_its_own(module)]
        for module, forward in changed:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in changed:
                del module.forward


def compiled_or_checkpointed(backbone: nn.Module) -> bool:
    """Whether a part of a model runs as compiled, or again in the backward pass.

    What is changed about its modules for one forward pass would not be seen there.
    """
    return any(
        vars(module).get("gradient_checkpointing")
        or vars(module).get("_compiled_call_impl")
        or isinstance(module, CheckpointWrapper)  # by accelerate, for FSDP
        for module in backbone.modules()
    )


def _lean_forwards(backbone: nn.Module) -> list[tuple[nn.Module, _Forward]]:
    """Return the modules that can keep less, each with its other forward pass."""
    found: list[tuple[nn.Module, _Forward]] = []
    proven: dict[type[nn.Module], _Maker | None] = {}
    for module in backbone.modules():
        makers = _makers_for(module)
        if not makers:
            continue
        kind = type(module)
        if kind not in proven:
            proven[kind] = next((make for make in makers if _proves(make, module)), None)
        make = proven[kind]
        if make is not None:
            found.append((module, _by_any_name(make(module))))
    return found


def _makers_for(module: nn.Module) -> Sequence[_Maker]:
    """Return what may make a module's other forward pass, by what it looks like."""
    if not _is_its_own(module) or any(hasattr(weight, "ds_id") for weight in module.parameters()):
        return ()
    makers = _MLPS if _is_gated_mlp(module) else _NORMS if _is_norm(module) else ()
    # One argument: no gates, no residuals beside it.
    return makers if makers and len(signature(module.forward).parameters) == 1 else ()


def _is_its_own(module: nn.Module) -> bool:
    """Whether nobody (accelerate's hooks, kernels from the Hub) put a forward on the module."""
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


def _proves(make: _Maker, module: nn.Module) -> bool:
    """Whether the other forward pass of a module gives what its own does, bit by bit."""
    try:
        with in_mode(module, training=True):  # where it has dropout, the other must have it too
            return all(
                _same(_answer(module, hidden), _answer(make(module), hidden))
                for hidden in _probes_of(module)
            )
    except Exception:  # any failure means the same: it is not what it looks like
        return False


def _probes_of(module: Any) -> list[Tensor]:
    """Return hidden states to try a module with."""
    if _is_gated_mlp(module):
        width, dtypes = module.gate_proj.in_features, [_dtype_of(module)]
    else:  # where a norm rounds shows in a dtype less wide than its weights
        width, dtypes = len(module.weight), [torch.float32, torch.bfloat16]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, _PROBE_TOKENS, width, generator=generator)
    device = next(module.parameters()).device
    return [hidden.to(device, dtype) for dtype in dtypes]


@torch.no_grad()
def _answer(forward: _Forward, hidden: Tensor) -> Tensor:
    """Return what a module makes of hidden states, and leave the random numbers as they were."""
    with torch.random.fork_rng([hidden.device] if hidden.is_cuda else []):
        return forward(hidden)


def _by_any_name(forward: _Forward) -> _Forward:
    """Let the one argument of a function be named as anybody likes."""

    def called(*arguments: Tensor, **named: Tensor) -> Tensor:
        return forward(*arguments, *named.values())

    return called


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype that a module computes in; quantised weights do not say it."""
    floating = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
    return next(floating, torch.float32)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


# RMSNorm ------------------------------------------------------------------------------------------


class _Style(NamedTuple):
    """How a norm's weights meet what it normed; rounding happens at different places.

    Attributes:
        offset: Added to the weights.
        apply: Scales normed float32 input by the weights, for input of a dtype.
    """

    offset: float
    apply: Callable[[Tensor, Tensor, torch.dtype], Tensor]


_STYLES = (
    _Style(0.0, lambda normed, weight, dtype: weight * normed.to(dtype)),  # Llama, Qwen, Mistral
    _Style(0.0, lambda normed, weight, dtype: (weight * normed).to(dtype)),  # OLMo 2
    _Style(1.0, lambda normed, weight, dtype: (normed * (1.0 + weight.float())).to(dtype)),  # Gemma
)


class _RMSNorm(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + eps)``, scaled; keeps x and its scale per token."""

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
            # The derivative of the norm takes out what is along x.
            along = (product @ factor / factor.numel()).unsqueeze(-1)
            of_hidden = (gradient * factor).addcmul_(normed, along, value=-1).mul_(inverse)
            of_hidden = of_hidden.to(hidden.dtype)
        return of_hidden, of_weight, None, None


def _lean_norm(module: Any, style: _Style) -> _Forward:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))

    def forward(hidden: Tensor) -> Tensor:
        normed: Tensor = _RMSNorm.apply(hidden, module.weight, eps, style)  # type: ignore[no-untyped-call] # torch
        return normed

    return forward


# Gated MLPs ---------------------------------------------------------------------------------------


class _Gated(torch.autograd.Function):
    """``activation(gate) * up``, and what a linear layer makes of it if its weights are given.

    Keeps gate and up; (..., I) each. The weights are (D, I).
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
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.activation(gate)
        rows = gradient.flatten(0, -2)
        of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_weight = rows.T @ (activated.detach() * up).flatten(0, -2)
        if ctx.needs_input_grad[3]:
            of_bias = rows.sum(0)
        of_product = gradient if weight is None else gradient @ weight
        of_up = of_product * activated.detach()
        (of_gate,) = torch.autograd.grad(activated, gate, of_product * up)
        return of_gate, of_up, of_weight, of_bias, None


def _lean_mlp(module: Any) -> _Forward:
    def forward(hidden: Tensor) -> Tensor:
        gate, up = module.gate_proj(hidden), module.up_proj(hidden)
        down = module.down_proj
        output: Tensor
        if is_bare_linear(down) and gate.dtype == up.dtype == computing_dtype(gate):
            weight = down.weight.to(gate.dtype)  # as autocast would
            bias = None if down.bias is None else down.bias.to(gate.dtype)
            output = _Gated.apply(gate, up, weight, bias, module.act_fn)  # type: ignore[no-untyped-call] # torch
        else:  # LoRA, quantised weights: what they keep is theirs
            output = down(_Gated.apply(gate, up, None, None, module.act_fn))  # type: ignore[no-untyped-call] # torch
        return output

    return forward


_NORMS: Sequence[_Maker] = [partial(_lean_norm, style=style) for style in _STYLES]
_MLPS: Sequence[_Maker] = [_lean_mlp]
