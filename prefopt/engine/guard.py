"""Ask a model something and leave it as it was.

References, probes and evaluations use the policy between two training steps. Much changes on the
way: peft makes every weight of an adapter trainable when it switches the adapter on again, rotary
embeddings keep the frequencies of the longest text so far, and loaders draw random numbers.
"""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

# A module's own attributes of these types are its state; lists and dictionaries of them too.
_PLAIN = frozenset((bool, int, float, str, type(None), torch.dtype))

# What every module has: its parts and hooks, which no forward pass changes.
_COMMON = frozenset(vars(nn.Module())) - {"training"}

# Whether a 4-bit layer of bitsandbytes may rewrite its weights for the processor.
_PACKS = "support_avx512bf16_for_cpu"

# Larger buffers are tables and masks, which no forward pass writes to; these are copied.
_SMALL_BUFFER = 1 << 16


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Let no setting of a checkpoint, as top-k or a repetition penalty, take part in ``generate``.

    Args:
        model: The causal language model itself, inside of what wraps it.
    """
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


@contextmanager
def undisturbed(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Switch a model to evaluation or training mode; when the context ends, all is as it was.

    That is: the mode of each module, its plain attributes (active adapters among them), its
    buffers, which weights require gradients, and the states of all random number generators.
    Weights are not copied: what is done inside must not train.
    """
    modules = list(model.modules())
    states = [_ModuleState.of(module) for module in modules]
    parameters = {
        id(it): it for module in modules for it in module._parameters.values() if it is not None
    }
    required = [(it, it.requires_grad, it._version) for it in parameters.values()]
    cuda = {it.device for it in parameters.values() if it.is_cuda}
    generators = (random.getstate(), np.random.get_state())  # the global one
    try:
        _set_mode(model, modules, training)
        with torch.random.fork_rng(list(cuda)):
            yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        for parameter, gradient, _ in required:
            if parameter.requires_grad != gradient:
                parameter.requires_grad_(gradient)
        rewritten = any(it._version != version for it, _, version in required)
        for state in states:
            # RWKV rescales its weights from mode to mode, and notes which it has.
            (state.only_mode() if rewritten else state).restore()


def _set_mode(model: nn.Module, modules: Iterable[nn.Module], training: bool) -> None:
    """Switch a model to training mode, or to evaluation mode as far as that is the same model.

    On a CPU, 8-bit layers of bitsandbytes are exact in training and round their inputs in
    evaluation; they have no dropout, and stay as they are trained. Its 4-bit layers rewrite their
    weights for good in evaluation (see ``prefopt.engine.quantised``).
    """
    model.train(training)
    for module in modules:
        if is_8bit(module):
            module.training = True
    keep_unpacked(modules)


def keep_unpacked(modules: Iterable[nn.Module]) -> None:
    """Prevent bitsandbytes from packing 4-bit weights from now on; packed ones stay packed."""
    for module in modules:
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)


def is_8bit(module: nn.Module) -> bool:
    """Whether a module is an 8-bit layer of bitsandbytes (LLM.int8)."""
    # By the base classes' names, for bitsandbytes need not be installed. What peft puts around such
    # a layer is called like it.
    return any(
        kind.__name__ == "Linear8bitLt" and not kind.__module__.startswith("peft.")
        for kind in type(module).__mro__
    )


class _ModuleState(NamedTuple):
    """What a forward pass may change of a module, its submodules apart.

    Attributes:
        module: The module.
        attributes: Its plain attributes, or its mode alone.
        buffers: Its buffers, each with a copy if it is small.
        complete: Whether all plain attributes are held, so that others are new.
    """

    module: nn.Module
    attributes: dict[str, Any]
    buffers: dict[str, tuple[Tensor | None, Tensor | None]]
    complete: bool = True

    @classmethod
    def of(cls, module: nn.Module) -> "_ModuleState":
        # What a parallel wrapper notes in its first forward pass must stay.
        if type(module).__module__.startswith("torch.distributed"):
            return cls(module, {"training": module.training}, {}, complete=False)
        attributes = {
            name: copy.copy(value) if type(value) in (list, dict) else value
            for name, value in vars(module).items()
            if _is_state(name, value)
        }
        buffers = {name: (buffer, _copied(buffer)) for name, buffer in module._buffers.items()}
        return cls(module, attributes, buffers)

    def only_mode(self) -> "_ModuleState":
        mode = {"training": self.attributes["training"]}
        return self._replace(attributes=mode, buffers={}, complete=False)

    def restore(self) -> None:
        own, buffers = vars(self.module), self.module._buffers
        for name in own.keys() - self.attributes if self.complete else ():
            if _is_state(name, own[name]):
                del own[name]
        for name, value in self.attributes.items():
            if name not in own or own[name] is not value:
                own[name] = value
        for name, (buffer, copied) in self.buffers.items():
            buffers[name] = buffer
            if buffer is not None and copied is not None:
                with torch.no_grad():
                    buffer.copy_(copied)


def _is_state(name: str, value: Any) -> bool:
    """Whether an attribute of a module is a plain value of its own."""
    if name in _COMMON:
        return False
    kind = type(value)
    if kind is list or kind is dict:
        items = value if kind is list else value.values()
        return all(type(item) in _PLAIN for item in items)
    return kind in _PLAIN or (kind is Tensor and value.dim() == 0)


def _copied(buffer: Tensor | None) -> Tensor | None:
    """Return a copy of a buffer that a forward pass may write to."""
    if buffer is None or buffer.is_meta or buffer.numel() > _SMALL_BUFFER:
        return None
    return buffer.detach().clone()
