"""Probe whether a backend computes right on this machine: forward and backward, on random numbers.

Kernels are selected by what is installed and by the GPU; some run forward and fail backward.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from prefopt.engine.attention.plan import Attend, AttentionOptions, AttentionPlan, LayerFacts
from prefopt.engine.attention.segments import attend_by_segments
from prefopt.engine.layout import Segment

# A prompt, a branch that branches again, one that ends at once, and a text of its own.
_SEGMENTS = (Segment(5), Segment(3, (0,)), Segment(2, (0, 1)), Segment(1, (0,)), Segment(4))

# Shorter than the texts above; no kernel is compiled for one window.
_WINDOW = 3


def probe_backend(
    attend: Attend, layers: Iterable[LayerFacts], device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return what is wrong with a backend, or None if it equals ``segments``.

    Args:
        attend: The backend.
        layers: The layers to probe.
        device: Where to compute.
        dtype: What to compute in; ``segments`` computes in float32.

    Returns:
        None where outputs and gradients differ by no more than the rounding of the dtype.
    """
    tolerance = 2e-5 if dtype in (torch.float32, torch.float64) else 0.03
    for layer in layers:
        wanted = _outputs_and_gradients(attend_by_segments, layer, device, torch.float32)
        try:
            got = _outputs_and_gradients(attend, layer, device, dtype)
        except Exception as error:  # whatever a kernel or its compiler raises, it cannot be used
            return f"{type(error).__name__}: {error}".splitlines()[0]
        for ours, theirs in zip(got, wanted, strict=True):
            difference = float((ours - theirs).abs().max() / theirs.abs().max())
            if not difference <= tolerance:  # so that NaN is a difference too
                return f"its attention differs by {difference:.2g} of the largest number"
    return None


def _outputs_and_gradients(
    attend: Attend, layer: LayerFacts, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Return the output for random inputs, and the gradients of a random loss; float32."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(segment.length for segment in _SEGMENTS)

    def draw(*shape: int) -> Tensor:
        # Rounded to the coarsest dtype, so that all dtypes start from the same numbers.
        numbers = torch.randn(shape, generator=generator).bfloat16()
        return numbers.to(device, dtype)

    inputs = [
        draw(1, layer.heads, tokens, layer.head_dim),
        draw(1, layer.kv_heads, tokens, layer.head_dim),
        draw(1, layer.kv_heads, tokens, layer.value_dim),
        *([draw(layer.heads)] if layer.sinks else []),
    ]
    options = AttentionOptions(
        scaling=layer.scaling,
        window=None if layer.window is None else _WINDOW,
        softcap=layer.softcap,
        sinks=inputs[3].requires_grad_() if layer.sinks else None,
    )
    plan = AttentionPlan(_SEGMENTS, attend)
    with torch.enable_grad():
        query, key, value = (tensor.requires_grad_() for tensor in inputs[:3])
        output = attend(query, key, value, plan, options)
        gradients = torch.autograd.grad(output, inputs, draw(*output.shape))
    return [tensor.detach().float() for tensor in (output, *gradients)]
