"""Choose the attention backend: the one that was asked for, or the fastest that can be used."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from prefopt.engine.attention.flex import attend_flex, flex_problem
from prefopt.engine.attention.plan import Attend, LayerFacts
from prefopt.engine.attention.segments import attend_by_segments
from prefopt.engine.attention.varlen import attend_varlen, varlen_problem
from prefopt.engine.probe import DROPOUTS

# What may be asked for; "padded" is no backend but the layout that needs none.
BACKENDS = ("auto", "segments", "varlen", "flex", "padded")
LAYOUTS = ("auto", "shared_prefix", "padded")


def check_request(layout: str, attn_backend: str) -> str:
    """Return the layout that both ask for.

    Raises:
        ValueError: If either is unknown, or one contradicts the other.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {_quoted(LAYOUTS)}, got {layout!r}")
    if attn_backend not in BACKENDS:
        raise ValueError(f"attn_backend must be one of {_quoted(BACKENDS)}, got {attn_backend!r}")
    if attn_backend == "padded" and layout == "shared_prefix":
        raise ValueError(
            'attn_backend="padded" is the padded layout, but layout="shared_prefix" was asked for; '
            "leave one of them out"
        )
    if layout == "padded" and attn_backend not in ("auto", "padded"):
        raise ValueError(
            f'attn_backend={attn_backend!r} attends in packed rows, but layout="padded" was asked '
            "for; leave one of them out"
        )
    if attn_backend == "auto":
        return layout
    return "padded" if attn_backend == "padded" else "shared_prefix"


def drops_weights(model: nn.Module) -> bool:
    """Whether a model drops attention weights in training."""
    for module in model.modules():
        if "Attention" in type(module).__name__:
            for name in DROPOUTS:
                value = getattr(module, name, 0.0)
                if getattr(value, "p", value) not in (None, 0.0):
                    return True
    return False


class Backend(NamedTuple):
    """A backend.

    Attributes:
        name: As in ``BACKENDS``.
        attend: Computes attention.
        reason: Why it was chosen, for people.
    """

    name: str
    attend: Attend
    reason: str


def choose_backend(
    request: str,
    *,
    layers: Iterable[LayerFacts],
    device: torch.device,
    dtype: torch.dtype,
    dropout: bool = False,
) -> Backend:
    """Choose the attention backend of a model's packed rows.

    Args:
        request: ``"auto"``, or the backend that is required.
        layers: What the model's layers require, as a forward pass showed.
        device: Where the model is.
        dtype: What its attention computes in: autocast's dtype, where that is on.
        dropout: Whether attention weights are dropped in training.

    Returns:
        The backend. ``"auto"`` takes ``varlen`` on CUDA in half precision, ``flex`` where the
        layers cannot have ``varlen``, else ``segments``.

    Raises:
        ValueError: If ``request`` is no backend for packed rows, or cannot be met here.
    """
    layers = tuple(layers)
    if request == "segments":
        return Backend("segments", attend_by_segments, "asked for")
    problems = {
        "varlen": _first(varlen_problem(layer, dropout, device, dtype) for layer in layers),
        "flex": _first(flex_problem(layer, dropout, device, dtype) for layer in layers),
    }
    if request in problems:
        if (problem := problems[request]) is not None:
            raise ValueError(
                f"attn_backend={request!r} was asked for, but {problem}; "
                'use attn_backend="auto" or "segments"'
            )
        return _backend(request, "asked for")
    if request != "auto":
        raise ValueError(f"no backend for packed rows: {request!r}")
    if device.type != "cuda":
        return Backend("segments", attend_by_segments, f"the model is on {device.type}")
    varlen = problems["varlen"]
    if varlen is None:
        return _backend("varlen", f"the model is on CUDA, in {str(dtype)[6:]}")
    reason = f"not varlen: {varlen}"
    if problems["flex"] is None and dtype in (torch.bfloat16, torch.float16):
        return _backend("flex", reason)
    return Backend("segments", attend_by_segments, reason)


def _backend(name: str, reason: str) -> Backend:
    return Backend(name, attend_varlen if name == "varlen" else attend_flex, reason)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)
