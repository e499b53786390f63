"""The models that are timed: known shapes with random weights, made from a seed."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

POSITIONS = 8192


class Size(NamedTuple):
    """A shape of model.

    Attributes:
        config: Its configuration class.
        fields: What the class is told.
    """

    config: type[PretrainedConfig]
    fields: dict[str, Any]


def _fields(
    vocabulary: int, hidden: int, layers: int, heads: tuple[int, int], mlp: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": mlp,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }


SIZES = {
    "tiny": Size(LlamaConfig, _fields(1024, 64, 2, (4, 2), 128)),
    "17m": Size(LlamaConfig, _fields(8192, 384, 8, (6, 6), 1024)),
    "135m": Size(LlamaConfig, _fields(49152, 576, 30, (9, 3), 1536)),  # SmolLM2-135M
    "qwen2.5-0.5b": Size(Qwen2Config, _fields(151936, 896, 24, (14, 2), 4864)),
    "llama-3.2-1b": Size(LlamaConfig, _fields(128256, 2048, 16, (32, 8), 8192)),
}


class Shape(NamedTuple):
    """What a count of operations must know of a model.

    Attributes:
        parameters: All weights, the tied one once.
        linear: Weights of the linear layers of the transformer, without the LM head.
        layers: Number of layers.
        attention: Query heads times their width.
        hidden: Width of the hidden states.
        mlp: Width inside the MLP.
        vocabulary: Rows of the LM head.
    """

    parameters: int
    linear: int
    layers: int
    attention: int
    hidden: int
    mlp: int
    vocabulary: int


def make_config(size: str) -> PretrainedConfig:
    """Return the configuration of a size."""
    return SIZES[size].config(**SIZES[size].fields)


def make_model(size: str, seed: int, *, dtype: torch.dtype, attention: str) -> Any:
    """Return a model with random weights, the same for the same seed whatever trains it.

    Args:
        size: A name of ``SIZES``.
        seed: Of the weights.
        dtype: Of the weights.
        attention: ``attn_implementation`` of transformers.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(size), attn_implementation=attention)
    return model.to(dtype)


def shape_of(size: str) -> Shape:
    """Return the shape of a size; no weights are made."""
    config = make_config(size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear=linear,
        layers=config.num_hidden_layers,
        attention=config.num_attention_heads * width,
        hidden=config.hidden_size,
        mlp=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


def checksum(model: Any) -> float:
    """Return a number that two models share if they have the same weights."""
    return float(sum(parameter.detach().double().sum() for parameter in model.parameters()))
