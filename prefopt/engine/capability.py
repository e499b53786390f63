"""What a model can do on this machine, found by probes: head, layout, attention backend.

Before its first batch, a *probe* of a few tokens is scored in the shared-prefix layout and by the
model's own plain forward pass of each text alone. Where the two differ (state that leaks from one
branch into the next, a head that transforms its logits, attention that never calls our backend,
recurrent layers that start from no state), the padded layout is used instead, and where that
differs too, each text is computed by itself; a warning says so once.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.engine import attention
from prefopt.engine.company import Company, known_company, original_window
from prefopt.engine.forward import Forward
from prefopt.engine.guard import is_8bit, undisturbed
from prefopt.engine.layout import LayoutName, build_layout
from prefopt.engine.moe import EXPERT_COUNTS
from prefopt.engine.precision import computing_dtype
from prefopt.engine.probe import (
    FAILURES,
    close,
    computes_at_random,
    is_exact,
    probe_inputs,
    quiet_transformers,
)
from prefopt.engine.recurrent.probe import probe_leaks, probe_trees
from prefopt.engine.wrapper import adapter_names, refuse_wrapper, stirred

logger = logging.getLogger("prefopt")

# A layer type outside these restricts attention in a way that only its own mask function knows.
_EXPRESSIBLE_LAYERS = {"full_attention", "sliding_attention", "attention"}

# Layers without attention, or with attention to all tokens beside a state.
_RECURRENT_LAYERS = {"linear_attention", "mamba", "mamba2", "conv", "hybrid", "mlp", "moe"}


class Capability(NamedTuple):
    """How a model's batches are laid out, why, and the attention backend of packed rows."""

    layout: LayoutName
    reason: str
    backend: attention.Backend | None = None


def probe_capability(
    forward: Forward,
    layout: str,
    attn_backend: str,
    context: Callable[[], Any],
    longest: int | None = None,
) -> Capability:
    """Probe a model, and set up its forward pass for what was found.

    ``longest``: tokens of the longest text to come; None for any.

    An adapter that is to be trained is moved for that, for a fresh one does nothing yet.

    Raises:
        ValueError: If the model reads later tokens, its wrapper does more than call it, or a layout
            or backend is required that this model or machine cannot have.
    """
    with stirred(forward.model):
        return _probe_capability(forward, layout, attn_backend, context, longest)


def _probe_capability(
    forward: Forward,
    layout: str,
    attn_backend: str,
    context: Callable[[], Any],
    longest: int | None,
) -> Capability:
    with undisturbed(forward.model):
        refuse_wrapper(forward.model, forward.causal_lm, probe_inputs(forward.causal_lm))
    forward.asked_in_training_mode = probe_modes(forward)
    alone = probe_causality(forward)
    probe_head(forward)
    forward.company = probe_company(forward, alone)
    if layout == "padded":
        probe_padded(forward)
        return Capability("padded", "asked for")
    if forward.company.may_separate(longest):
        problem: str | None = forward.company.reason
    else:
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
    probe_padded(forward)
    return Capability("padded", problem)


@torch.no_grad()
def probe_modes(forward: Forward) -> bool:
    """Whether a model computes something else in training than in evaluation, dropout aside.

    What differs between two passes in training mode is random, which is warned of where no dropout
    explains it.

    Raises:
        ValueError: If the model has no working forward pass.
    """
    tokens = _probe_tokens(forward)
    with undisturbed(forward.model):
        try:
            evaluated = forward.plain_logits(tokens)
        except FAILURES as error:
            raise ValueError(
                f"{type(forward.causal_lm).__name__} cannot be scored: its own forward pass of a "
                f"text fails: {type(error).__name__}: {error}"
            ) from error
    exact = is_exact(forward.model)
    try:
        with undisturbed(forward.model, training=True):
            once = forward.plain_logits(tokens)
            if close(once, evaluated, exact):
                return False
            again = forward.plain_logits(tokens)
    except FAILURES:  # it wants labels in training
        return False
    if not close(once, again, exact):
        if not any(map(computes_at_random, forward.model.modules())):
            logger.warning(
                "prefopt: %s computes at random in training though no dropout is on; its log-probs "
                "differ from a reference's by chance",
                type(forward.causal_lm).__name__,
            )
        return False
    return True


@torch.no_grad()
def probe_causality(forward: Forward) -> Tensor:
    """Return the plain logits of the probe, of which none may depend on later tokens; (T, V).

    Raises:
        ValueError: If what a model predicts of a completion depends on later tokens, or is NaN.
    """
    logits = _causal_logits(forward)
    if logits is None and forward.takes_token_types:
        forward.reads_prompts_both_ways = True  # the types then say where a prompt ends
        logits = _causal_logits(forward)
    if logits is None:
        raise ValueError(
            f"{type(forward.causal_lm).__name__} reads the tokens that it is to predict: its "
            f"attention{_or_adapter(forward.model)} looks both ways. prefopt trains causal "
            "language models"
        )
    return logits


def _or_adapter(model: nn.Module) -> str:
    names = adapter_names(model)
    return f" or its adapter ({names})" if names else ""


def _causal_logits(forward: Forward) -> Tensor | None:
    """Return the plain logits of the probe; None if earlier ones change with its last token."""
    tokens = _probe_tokens(forward)
    other = tokens.clone()
    other[-1] = tokens[0]
    with _asked(forward):
        before, after = (forward.plain_logits(text) for text in (tokens, other))
    if before[:-1].isnan().any():
        raise ValueError(
            f"{type(forward.causal_lm).__name__} predicts NaN: its weights hold NaN or infinite "
            "numbers, or are too large for their dtype"
        )
    # A token changes the rounding of others only in layers that compute several tokens as one.
    mixing = _has_experts(forward) or any(is_8bit(module) for module in forward.model.modules())
    exact = not mixing or is_exact(forward.model)
    return before if close(before[:-1], after[:-1], exact) else None


@torch.no_grad()
def probe_company(forward: Forward, alone: Tensor) -> Company:
    """Return which texts may be computed together: what is known, or else what a probe finds.

    The probe gives a text company that stands beyond the window the model was made for. The places
    of a few tokens suffice for that, where positions are computed and not looked up in a table.
    ``alone``: the plain logits of the probe; (T, V).
    """
    known = known_company(forward.causal_lm)
    window = original_window(forward.causal_lm.config.get_text_config())
    if known.beyond != "any" or window is None or not _computes_positions(forward):
        return known
    inputs = probe_inputs(forward.causal_lm)
    rows = {name: torch.cat([it, it]) for name, it in inputs.items()}
    far = torch.tensor([[0], [window]], device=rows["position_ids"].device)
    rows["position_ids"] = rows["position_ids"] + far
    with _asked(forward):
        beside = forward.model(**rows, use_cache=False).logits[0]
    if close(beside, alone, is_exact(forward.model)):
        return known
    return Company("equal", window, "they change beside a longer text")


def _has_experts(forward: Forward) -> bool:
    config = forward.causal_lm.config.get_text_config()
    return any(getattr(config, name, None) for name in EXPERT_COUNTS)


def _computes_positions(forward: Forward) -> bool:
    """Whether a model computes rotary positions of any size, and has no table that could end."""
    buffers = {name.split(".")[-1] for name, _ in forward.causal_lm.named_buffers()}
    native = type(forward.causal_lm).__module__.startswith("transformers.")
    return native and any(name.endswith("inv_freq") for name in buffers)


def probe_padded(forward: Forward) -> None:
    """See to it that padded rows give what each text gives alone: if need be, one row at a time.

    Raises:
        ValueError: If even then they differ.
    """
    exact = is_exact(forward.model)
    problem = _probe_layout(forward, "padded", exact)
    if problem is None:
        return
    forward.company = Company("none", 0, f"in padded rows {problem}")
    logger.warning("prefopt: %s computes %s", type(forward.causal_lm).__name__, forward.company)
    problem = _probe_layout(forward, "padded", exact)
    if problem is not None:
        raise ValueError(f"{type(forward.causal_lm).__name__} cannot be scored: {problem}")


def _asked(forward: Forward) -> AbstractContextManager[None]:
    return undisturbed(forward.model, forward.asked_in_training_mode)


def _probe_tokens(forward: Forward) -> Tensor:
    return probe_inputs(forward.causal_lm)["input_ids"][0]


@torch.no_grad()
def probe_head(forward: Forward) -> None:
    """Use the chunked head only if it gives the logits that the model itself gives."""
    inputs = probe_inputs(forward.causal_lm)
    with _asked(forward):
        own = forward.model(**inputs, use_cache=False).logits
        try:
            assert forward.head is not None
            hidden = forward.hidden_states(inputs)
            ours = forward.head.transform(forward.head.module(hidden))
            same = ours.shape == own.shape and close(ours, own, is_exact(forward.model))
        except (AttributeError, TypeError, NotImplementedError, RuntimeError):
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
    if forward.reads_prompts_both_ways:
        return "it reads each token of a prompt from all others"
    model = forward.causal_lm
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    unknown = layer_types - _EXPRESSIBLE_LAYERS - _RECURRENT_LAYERS
    if unknown:
        return f"it has layers of type {', '.join(sorted(unknown))}"
    forward.carry_states()
    before = model.config._attn_implementation
    with quiet_transformers():
        model.set_attn_implementation(attention.NAME)
        problem = _probe_layout(forward, "shared_prefix", is_exact(forward.model))
        if problem is None and forward.mixers:
            problem = probe_leaks(forward, _has_experts(forward))
        passed = any(layer.window for layer in forward.layers_seen)
        if problem is None and _has_windows(model) and not passed:
            problem = "its attention hides its sliding window"
        if problem is not None:
            model.set_attn_implementation(before)
            forward.carry_no_states()
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
            problem = _probe_layout(forward, "shared_prefix", exact=False)
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


def _probe_layout(forward: Forward, layout: LayoutName, exact: bool) -> str | None:
    """Score two small trees in a layout and each text alone; return what differs, or None."""
    try:
        ours, plain = _probe_logps(forward, layout)
    except Exception as error:  # whatever fails, the layout cannot be used
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if close(ours, plain, exact):
        return None
    largest = float((ours - plain).abs().max())
    return f"log-probs of a probe differ by {largest:.2g} nats from the plain forward"


@torch.no_grad()
def _probe_logps(forward: Forward, layout: LayoutName) -> tuple[Tensor, Tensor]:
    """Return the log-probs of the tokens of small trees, in a layout and of each text alone."""
    examples = probe_trees(forward)
    with _asked(forward):
        batch = build_layout(examples, layout).to(forward.causal_lm.device)
        ours = forward(batch).logps.index_select(0, batch.token_index)
        plain = [
            forward.plain_logps(torch.from_numpy(text), prompt)[prompt - 1 :]
            for example in examples
            for prompt, text in ((len(example.prompt_ids), text) for text in example.texts())
        ]
    return ours, torch.cat(plain)
