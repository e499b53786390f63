"""Probes: their inputs, and how results are compared."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What a forward pass that does not work raises.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError)

# Names under which modules hold the probability of a dropout that is no module of its own.
DROPOUTS = ("attention_dropout", "attn_dropout", "dropout")

# Names under which routers hold how much noise they add in training.
JITTER = ("jitter_noise", "input_jitter_noise", "router_jitter_noise", "moe_jitter_eps")


def is_whole(weight: Tensor) -> bool:
    """Whether a weight is in this process, and no part of one: not on no device, and no DTensor.

    One that DeepSpeed partitions counts as whole, for it can be gathered.
    """
    return weight.device.type != "meta" and not hasattr(weight, "device_mesh")


def inside_peft(model: Any) -> Any:
    """Return the model inside a peft model, adapters in its layers, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def causal_lm_of(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    adapters = getattr(model, "peft_config", None) or {}
    for name, config in dict(adapters).items():
        refuse_virtual_tokens(config, name)
    inner = inside_peft(model)
    refuse_encoder_decoder(inner.config, type(inner).__name__)
    return inner


def refuse_virtual_tokens(config: Any, name: str) -> None:
    """Raise for the configuration of an adapter that puts virtual tokens before the text.

    Raises:
        ValueError: If it is one: prompt tuning, prefix tuning and their like.
    """
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"adapter {name!r} ({type(config).__name__}) puts virtual tokens before the text, "
            "which a shared prompt cannot hold; use LoRA or full fine-tuning"
        )


def refuse_encoder_decoder(config: Any, name: str) -> None:
    """Raise for the configuration of a model that reads the prompt with an encoder.

    The decoder of such a model as a class of its own (``BartForCausalLM``) says that it is none.

    Raises:
        ValueError: If it is one, or its language model is.
    """
    parts = [config, getattr(config, "text_config", None)]
    if any(getattr(part, "is_encoder_decoder", False) for part in parts):
        raise ValueError(
            f"{name} is an encoder-decoder ({type(config).__name__}); prefopt trains causal "
            "language models, which read the prompt and write the answer with one decoder"
        )


def takes_token_types(model: Any) -> bool:
    """Whether a model also reads images and requires the types of tokens in training."""
    reads_more_than_text = model.config.get_text_config() is not model.config
    return reads_more_than_text and "token_type_ids" in signature(type(model).forward).parameters


def computes_at_random(module: nn.Module) -> bool:
    """Whether a module itself, not those inside it, drops or adds something in training."""
    values = (getattr(module, name, None) for name in ("p", *DROPOUTS, *JITTER))
    return any(isinstance(value, float) and value > 0 for value in values)


def probe_inputs(model: Any) -> dict[str, Tensor]:
    """Return eleven different tokens, the same for every model of a vocabulary size."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = np.random.default_rng(0).permutation(min(vocabulary, 5000))[:11]
    tokens = np.resize(tokens, 11)
    device = model.device
    return {
        "input_ids": torch.as_tensor(tokens, device=device)[None],
        "position_ids": torch.arange(11, device=device)[None],
        "attention_mask": torch.ones(1, 11, dtype=torch.bool, device=device),
    }


def close(ours: Tensor, theirs: Tensor, exact: bool) -> bool:
    """Whether two computations of the same numbers differ by no more than rounding.

    ``exact``: both computed in float32 or better all the way.
    """
    difference = (ours.float() - theirs.float()).abs() / theirs.float().abs().max().clamp(min=1.0)
    if exact and not torch.backends.cuda.matmul.allow_tf32:
        return bool(difference.max() <= 2e-5)
    return bool(difference.max() <= 0.1 and difference.mean() <= 0.02)


def is_exact(model: nn.Module) -> bool:
    """Whether a model computes in float32 or better, quantised layers included."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    # 4-bit weights are stored as uint8 and computed with in another dtype.
    computing = {getattr(module, "compute_dtype", None) for module in model.modules()}
    return dtypes | computing <= {torch.float32, torch.float64, torch.uint8, None}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the warning of transformers about models whose attention cannot be changed."""
    log = logging.getLogger("transformers.modeling_utils")

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log.addFilter(is_error)  # setting a level takes a millisecond: it visits every logger there is
    try:
        yield
    finally:
        log.removeFilter(is_error)
