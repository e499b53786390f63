"""What a model can do on this machine, found by probes: head, layout, attention backend.

Before its first batch, a *probe* of a few tokens is scored in the shared-prefix layout and by the
model's own plain forward pass. Where the two differ (state that leaks from one branch into the
next, a head that transforms its logits, attention that never calls our backend), what is right is
used instead, and a warning says so once.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.engine import attention
from prefopt.engine.forward import Forward
from prefopt.engine.layout import Example, LayoutName, build_layout
from prefopt.engine.precision import computing_dtype
from prefopt.engine.probe import close, evaluating, is_exact, probe_inputs, quiet_transformers

logger = logging.getLogger("prefopt")

# A layer type outside these restricts attention in a way that only its own mask function knows.
_EXPRESSIBLE_LAYERS = {"full_attention", "sliding_attention", "attention"}


class Capability(NamedTuple):
    """How a model's batches are laid out, why, and the attention backend of packed rows."""

    layout: LayoutName
    reason: str
    backend: attention.Backend | None = None


def probe_capability(
    forward: Forward, layout: str, attn_backend: str, context: Callable[[], Any]
) -> Capability:
    """Probe a model, and set up its forward pass for what was found.

    Raises:
        ValueError: If a layout or backend is required that this model or machine cannot have.
    """
    probe_head(forward)
    if layout == "padded":
        return Capability("padded", "asked for")
    problem = probe_sharing(forward)
    if problem is None:
        backend = probed_backend(forward, attn_backend, context)
        forward.attend = backend.attend
        reason = "the probe's log-probs equal those of the plain forward"
        return Capability("shared_prefix", reason, backend)
    message = f"{type(forward.causal_lm).__name__} cannot share prefixes: {problem}"
    if layout == "shared_prefix":
        option = f'layout="{layout}"' if attn_backend == "auto" else f"{attn_backend=}"
        raise ValueError(f'{option} was asked for, but {message}; use "auto" or "padded"')
    logger.warning("prefopt: %s; using the padded layout", message)
    return Capability("padded", problem)


@torch.no_grad()
def probe_head(forward: Forward) -> None:
    """Use the chunked head only if it gives the logits that the model itself gives."""
    inputs = probe_inputs(forward.causal_lm)
    with evaluating(forward.model):
        own = forward.model(**inputs, use_cache=False).logits
        try:
            assert forward.head is not None
            hidden = forward.hidden_states(inputs)
            ours = forward.head.transform(forward.head.module(hidden))
            same = ours.shape == own.shape and close(ours, own, is_exact(forward.model))
        except (AttributeError, TypeError, NotImplementedError):
            same = False
    if not same:
        forward.head = None
        logger.warning(
            "prefopt: the output layer of %s does more than the chunked LM head supports; "
            "log-probs are taken from its full logits instead, which needs more memory",
            type(forward.causal_lm).__name__,
        )


def probe_sharing(forward: Forward) -> str | None:
    """Return why a model cannot use the shared-prefix layout, or None if it can.

    A model that can keeps our attention implementation; another one gets its own back.
    """
    if forward.head is None:
        return "its head needs the model's own forward"
    model = forward.causal_lm
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if layer_types - _EXPRESSIBLE_LAYERS:
        return f"it has layers of type {', '.join(sorted(layer_types - _EXPRESSIBLE_LAYERS))}"
    before = model.config._attn_implementation
    with quiet_transformers():
        model.set_attn_implementation(attention.NAME)
        problem = _probe_layouts(forward, is_exact(forward.model))
        passed = any(layer.window for layer in forward.layers_seen)
        if problem is None and _has_windows(model) and not passed:
            problem = "its attention hides its sliding window"
        if problem is not None:
            model.set_attn_implementation(before)
    return problem


def _has_windows(model: Any) -> bool:
    """Whether a configuration says that layers attend within a sliding window."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ("sliding_attention",)
    return (
        getattr(config, "sliding_window", None) is not None
        and "sliding_attention" in layer_types
        and bool(getattr(config, "use_sliding_window", True))
    )


def probed_backend(forward: Forward, request: str, context: Callable[[], Any]) -> attention.Backend:
    """Return the backend that was asked for, or the fastest whose probes are right here.

    The forward pass has been found to share prefixes with ``segments``.

    Raises:
        ValueError: If the required backend cannot be used with this model or machine.
    """
    model, layers = forward.causal_lm, forward.layers_seen
    with context():
        # Norms and rotary embeddings give one of two dtypes: the model's, or autocast's.
        dtype = computing_dtype(torch.empty(0, dtype=model.dtype, device=model.device))
        backend = attention.choose_backend(
            request,
            layers=layers,
            device=model.device,
            dtype=dtype,
            dropout=attention.drops_weights(forward.model),
        )
        if backend.name == "segments":  # which the layout was probed with
            return backend
        problem = attention.probe_backend(backend.attend, layers, model.device, dtype)
        if problem is None:
            forward.attend = backend.attend
            problem = _probe_layouts(forward, exact=False)
            forward.attend = attention.attend_by_segments
    if problem is None:
        return backend
    if request == backend.name:
        raise ValueError(
            f"attn_backend={request!r} was asked for, but {problem}; "
            'use attn_backend="auto" or "segments"'
        )
    logger.warning("prefopt: not the %s backend: %s", backend.name, problem)
    reason = f"not {backend.name}: {problem}"
    return attention.Backend("segments", attention.attend_by_segments, reason)


def _probe_layouts(forward: Forward, exact: bool) -> str | None:
    """Score two small trees in both layouts; return what fails or differs, or None."""
    try:
        shared, padded = _probe_logps(forward)
    except Exception as error:  # whatever fails, the layout cannot be used
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if close(shared, padded, exact):
        return None
    largest = float((shared - padded).abs().max())
    return f"log-probs of a probe differ by {largest:.2g} nats from the plain forward"


@torch.no_grad()
def _probe_logps(forward: Forward) -> list[Tensor]:
    """Return the log-probs of the tokens of two small trees, in each layout."""
    tokens = probe_inputs(forward.causal_lm)["input_ids"][0].cpu().numpy()
    examples = [
        Example(tokens[:5], [tokens[5:9], tokens[8:11]]),
        Example(tokens[2:6], [tokens[6:11], np.concatenate([tokens[6:8], tokens[:3]])]),
    ]
    layouts = (build_layout(examples), build_layout(examples, "padded"))
    logps = []
    with evaluating(forward.model):
        for layout in layouts:
            batch = layout.to(forward.causal_lm.device)
            logps.append(forward(batch).logps.index_select(0, batch.token_index))
    return logps
