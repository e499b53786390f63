"""Merge an adapter into the model under it, quantised or not, so that it predicts the same.

peft merges into quantised weights by quantising the sum again: log-probs of a 4-bit model moved by
1.5 nats. Here every layer becomes a plain one that computes what it computed, which its results on
the rows of a unit matrix tell, whatever quantiser and adapter it has.
"""

from typing import Any

import torch
from torch import nn

from prefopt.engine.guard import keep_unpacked, undisturbed
from prefopt.engine.probe import inside_peft
from prefopt.engine.quantised import is_quantised


@torch.no_grad()
def merge(model: Any) -> Any:
    """Return a plain model that predicts what a policy does, to be saved and loaded by itself.

    Args:
        model: With adapters of peft that are active, a quantised base, or both; it is changed, and
            not to be used any more.

    Returns:
        The transformers model, its weights in the dtype in which it computes.

    Raises:
        ValueError: If a quantised layer is not linear, and so no plain one computes the same.
    """
    base = inside_peft(model)
    keep_unpacked(base.modules())  # which would round its scales
    with undisturbed(base):
        plain = {name: _plain(layer, base.dtype) for name, layer in _linear_layers(base)}
    for name, layer in plain.items():
        parent, _, own = name.rpartition(".")
        setattr(base.get_submodule(parent), own, layer)
    if base is not model:
        base = model.merge_and_unload()  # what is not linear: embeddings, whole modules
    left = [name for name, weight in base.named_parameters() if is_quantised(weight)]
    if left:
        raise ValueError(f"{left[0]} is quantised and belongs to no linear layer: it stays so")
    if getattr(base, "is_quantized", False):
        base.is_quantized, base.hf_quantizer, base.quantization_method = False, None, None
        del base.config.quantization_config
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
            vars(base).pop(flag, None)
    base.tie_weights()
    return base


def _linear_layers(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear layers that are quantised or have an adapter, with what is around them."""
    found: list[tuple[str, nn.Module]] = []
    for name, layer in base.named_modules():
        if found and name.startswith(f"{found[-1][0]}."):
            continue  # inside the one before
        inner = layer.get_submodule("base_layer") if "base_layer" in layer._modules else layer
        has_adapter = inner is not layer and isinstance(inner, nn.Linear)
        stored = (*inner._parameters.values(), *inner._buffers.values())
        quantised = any(it is not None and it.dim() > 1 and is_quantised(it) for it in stored)
        if hasattr(inner, "in_features") and (has_adapter or quantised):
            found.append((name, layer))
    return found


def _plain(layer: nn.Module, dtype: torch.dtype) -> nn.Linear:
    """Return a plain linear layer that computes what another does."""
    inner = layer.get_submodule("base_layer") if "base_layer" in layer._modules else layer
    size = int(inner.in_features)  # type: ignore[arg-type] # of a linear layer of whatever kind
    device = next(it.device for it in (*inner.parameters(), *inner.buffers()))
    # In three dimensions, as in a model: some kernels take a single row otherwise.
    none = torch.zeros(1, 2, size, dtype=dtype, device=device)
    rows = torch.eye(size, dtype=dtype, device=device)[None]
    bias = layer(none)[0, 0]
    weight = (layer(rows)[0] - bias).T.contiguous()
    plain = nn.Linear(size, len(weight), bias=bool(bias.any()), device=device, dtype=dtype)
    plain.weight.copy_(weight)
    if plain.bias is not None:
        plain.bias.copy_(bias)
    return plain
