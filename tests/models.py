"""Tiny random models of many architectures, built from configurations."""

import warnings
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

VOCABULARY = 97

# Weights this large make a wrong attention or position visible in the log-probs at once.
_WEIGHT_STD = 0.15

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "qwen2": ("Qwen2Config", _COMMON),
    "qwen3": ("Qwen3Config", _COMMON | {"head_dim": 8}),
    # A window shorter than the prompts of the tests.
    "mistral": ("MistralConfig", _COMMON | {"sliding_window": 6}),
    "gemma2": ("Gemma2Config", _COMMON | {"head_dim": 8, "sliding_window": 6}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "phi3": ("Phi3Config", _COMMON),
    "opt": ("OPTConfig", _COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "cohere": ("CohereConfig", _COMMON),
    "granite": ("GraniteConfig", _COMMON | {"logits_scaling": 3.0}),
    "mamba": (
        "MambaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    # Its attention ignores registered functions: the probe must notice.
    "bloom": (
        "BloomConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
}

SHARING = [name for name in _ARCHITECTURES if name not in ("mamba", "bloom")]
PADDED_ONLY = ["mamba", "bloom"]


def tiny_config(name: str, **changes: Any) -> PretrainedConfig:
    """Return the configuration of a tiny model."""
    config, fields = _ARCHITECTURES[name]
    return getattr(transformers, config)(**(fields | changes))


def tiny_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """Return a tiny model with large random weights, in evaluation mode."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(tiny_config(name, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, _WEIGHT_STD)
    return model.eval()
