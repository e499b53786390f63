"""Layers below the first that is trained: a live reference and the policy compute the same there.

A step with a live reference is two forward passes over one batch. Up to the first layer that is
trained, or that has an adapter, both give the same hidden states: those of the reference are kept,
and the policy's pass begins above. An adapter on all layers leaves nothing to share, one on the
last third of them two thirds of a forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.engine.memory.last_layer import decoder_layers
from prefopt.engine.memory.recompute import compiled_or_checkpointed
from prefopt.engine.probe import FAILURES, computes_at_random


class _Kept(NamedTuple):
    """Hidden states between two layers, of one batch.

    Attributes:
        tokens: Of the batch: this very tensor.
        layers: The layers below.
        hidden: Their output; (R, T, D).
        version: Of that tensor, which nothing may have written to.
    """

    tokens: Tensor
    layers: list[nn.Module]
    hidden: Tensor
    version: int


class SharedStart:
    """Keeps what the lower layers gave in one pass, for the next over the same tokens.

    Args:
        backbone: A decoder, not wrapped for parallel training.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self._kept: _Kept | None = None
        # Whether layers may be left out at all: models in which later ones look back may not.
        self._proved: bool | None = None

    def __call__(self, tokens: Tensor, compute: Callable[[], Any], keep: bool = False) -> Any:
        """Return the output of a pass of the backbone, which begins where the last one allows.

        Args:
            tokens: Of the batch.
            compute: Makes the pass.
            keep: Whether the next pass is over the same tokens, by the same untrained weights.
        """
        kept, self._kept = self._kept, None
        if keep and self._proved is not False:
            return self._compute_and_keep(tokens, compute)
        if kept is None or kept.tokens is not tokens or kept.hidden._version != kept.version:
            return compute()
        with _left_out(kept):
            return compute()

    def _compute_and_keep(self, tokens: Tensor, compute: Callable[[], Any]) -> Any:
        layers = untrained_layers(self._backbone)
        outputs: list[Any] = []
        handles = [
            layer.register_forward_hook(lambda module, given, output: outputs.append(output))
            for layer in layers[-1:]
        ]
        try:
            output = compute()
        finally:
            for handle in handles:
                handle.remove()
        if len(outputs) == 1 and isinstance(outputs[0], Tensor):
            kept = _Kept(tokens, layers, outputs[0], outputs[0]._version)
            if self._proved is None:
                self._proved = _gives_the_same(kept, compute, output.last_hidden_state)
            self._kept = kept if self._proved else None
        return output


def untrained_layers(backbone: nn.Module) -> list[nn.Module]:
    """Return the first layers of a decoder that compute the same for a policy and its start.

    That is up to the first which is trained or has an adapter; none if anything before them is
    trained or computes at random, or if layers are compiled or checkpointed.
    """
    layers = decoder_layers(backbone)
    if layers is None or compiled_or_checkpointed(backbone):
        return []
    found = list(takewhile(_is_untrained, layers))
    after = {id(part) for layer in layers[len(found) :] for part in layer.modules()}
    children = list(backbone.children())
    for child in children[children.index(layers) + 1 :]:
        if "Norm" in type(child).__name__:  # the last norm
            after |= {id(part) for part in child.modules()}
    before = [part for part in backbone.modules() if id(part) not in after]
    return found if all(map(_is_untrained_itself, before)) else []


def _is_untrained(layer: nn.Module) -> bool:
    return all(map(_is_untrained_itself, layer.modules()))


def _is_untrained_itself(module: nn.Module) -> bool:
    # A layer of peft; models of transformers have a method of that name.
    adapted = isinstance(getattr(module, "disable_adapters", None), bool)
    trained = any(it is not None and it.requires_grad for it in module._parameters.values())
    return not adapted and not trained and not computes_at_random(module)


@contextmanager
def _left_out(kept: _Kept) -> Iterator[None]:
    """Let layers return what the last of them gave, until the context ends."""
    own = [vars(layer).get("forward") for layer in kept.layers]
    for layer in kept.layers:
        layer.forward = lambda *arguments, **named: kept.hidden
    try:
        yield
    finally:
        for layer, forward in zip(kept.layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _gives_the_same(kept: _Kept, compute: Callable[[], Any], wanted: Tensor) -> bool:
    """Whether a pass that begins above the lower layers gives the same to the last bit."""
    try:
        with _left_out(kept):
            got = compute().last_hidden_state
    except (*FAILURES, LookupError):  # layers above look for what these leave behind
        return False
    return torch.equal(got, wanted)
