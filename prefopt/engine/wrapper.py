"""What peft's wrapper does around the forward pass of the model inside it.

The engine runs the backbone itself, past the wrapper. Most adapters are in the layers, where that
makes no difference. Some are told by the wrapper, in each forward pass, where and how to act
(aLoRA, X-LoRA): past it they would not act, and get no gradient. Others add a penalty to the loss
of the model (AdaLoRA), which only that loss would have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.engine.own_forward import forward_replaced
from prefopt.engine.probe import FAILURES, is_whole

# How far an adapter is moved for a probe: so far that what it does is seen beyond rounding.
_STIR = 0.05


class AroundForward(NamedTuple):
    """What a wrapper does in one forward pass beside calling the model inside it once.

    Attributes:
        calls: How often it calls that model.
        hooks: How many hooks of layers it adds for the time of the call.
        penalty: What it adds to the model's own loss.
    """

    calls: int
    hooks: int
    penalty: float


def refuse_wrapper(model: Any, causal_lm: Any, inputs: dict[str, Tensor]) -> None:
    """Raise where a wrapper changes what the layers of a model compute.

    Raises:
        ValueError: If it does.
    """
    found = around_forward(model, causal_lm, inputs)
    if found is not None and (found.calls != 1 or found.hooks):
        raise ValueError(
            f"the adapter ({adapter_names(model)}) acts where peft's wrapper tells its layers to, "
            "anew in each forward pass, and prefopt calls the layers without the wrapper: it would "
            "not be trained. Use LoRA without that (leave out alora_invocation_tokens of "
            "LoraConfig, or X-LoRA)"
        )


@torch.no_grad()
def around_forward(model: Any, causal_lm: Any, inputs: dict[str, Tensor]) -> AroundForward | None:
    """Return what a wrapper does around the model inside it; None without one, or if it fails.

    Args:
        model: The model, in its wrapper if it has one.
        causal_lm: The model inside.
        inputs: Those of a forward pass.
    """
    if model is causal_lm:
        return None
    own = causal_lm.forward
    before, hooks, losses = _hooks(model), [], []

    def forward(*args: Any, **kwargs: Any) -> Any:
        hooks.append(_hooks(model) - before)
        output = own(*args, **kwargs)
        losses.append(float(output.loss))
        return output

    try:
        with forward_replaced(causal_lm, forward):
            loss = float(model(**inputs, labels=inputs["input_ids"]).loss)
    except FAILURES:  # other probes say what is wrong
        return None
    if not losses:  # it calls a forward pass that it took hold of before
        return None
    return AroundForward(len(losses), max(hooks), loss - losses[-1])


def _hooks(model: nn.Module) -> int:
    return sum(len(it._forward_hooks) + len(it._forward_pre_hooks) for it in model.modules())


def adapter_names(model: Any) -> str:
    """Return the names of a model's adapters, each with the class of its configuration."""
    configs = dict(getattr(model, "peft_config", None) or {})
    return ", ".join(f"{name}: {type(config).__name__}" for name, config in configs.items())


@contextmanager
def stirred(model: nn.Module) -> Iterator[None]:
    """Move what of an adapter is trained, and put it back to the bit in the end.

    Fresh adapters change nothing yet: a probe of them says nothing of what they do once trained.
    """
    adapted = bool(getattr(model, "peft_config", None))
    parameters = [it for it in model.parameters() if it.requires_grad] if adapted else []
    moved = [it.data for it in parameters if it.numel() and is_whole(it)]
    kept = [data.clone() for data in moved]
    try:
        for data in moved:
            generator = torch.Generator(data.device).manual_seed(data.numel())
            noise = torch.randn(data.shape, generator=generator, device=data.device)
            data.add_(noise.to(data.dtype), alpha=_STIR)
        yield
    finally:
        for data, value in zip(moved, kept, strict=True):
            data.copy_(value)
