"""Compile a model's layers, except their attention.

Attention is computed in Python from each batch's segments, which ``torch.compile`` would try to
trace. Norms, rotary embeddings, projections and MLPs of a layer become a few fused kernels; all
layers share one compilation.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.engine.attention.interface import NAME, prefopt_attention


def compile_layers(model: nn.Module, **options: Any) -> int:
    """Compile a model's layers in place, for rows of any length, and return how many there are.

    The options are those of ``torch.compile``.

    Raises:
        ValueError: If there is none.
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise ValueError(
            f"torch_compile=True: {type(model).__name__} has no layers of the kind that "
            "transformers marks, so there is nothing to compile; leave it out"
        )
    uncompiled = torch.compiler.disable(prefopt_attention)  # type: ignore[no-untyped-call] # torch
    AttentionInterface.register(NAME, uncompiled)
    for layer in layers:
        layer.compile(dynamic=True, **options)
    return len(layers)
