"""Tiny random models of many architectures, a tokenizer and rows for them; nothing is loaded."""

import warnings
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

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


def tiny_tokenizer() -> Any:
    """Return a tokenizer of whole words ``w3`` ... ``w96``; ids 0, 1, 2 are pad, unknown, EOS."""
    words = {"<pad>": 0, "<unk>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )


def tiny_rows(count: int, kind: str = "paired", seed: int = 0) -> Dataset:
    """Return rows of random words, of different lengths, some prompts shared.

    Args:
        count: How many rows.
        kind: ``paired``, ``unpaired`` or ``ranked``.
        seed: Of the words.
    """
    generator = np.random.default_rng(seed)

    def words(most: int) -> str:
        ids = generator.integers(3, VOCABULARY, generator.integers(1, most + 1))
        return " ".join(f"w{i}" for i in ids)

    prompts = [words(12) for _ in range(count)]
    if kind == "paired":
        columns = {
            "prompt": prompts,
            "chosen": [" " + words(9) for _ in prompts],
            "rejected": [" " + words(9) for _ in prompts],
        }
    elif kind == "unpaired":
        columns = {
            "prompt": prompts,
            "completion": [" " + words(9) for _ in prompts],
            "label": [bool(generator.integers(2)) for _ in prompts],
        }
    else:
        sizes = [int(generator.integers(2, 5)) for _ in prompts]
        columns = {
            "prompt": prompts,
            "completions": [[" " + words(9) for _ in range(size)] for size in sizes],
            "ranks": [list(range(size)) for size in sizes],
        }
    return Dataset.from_dict(columns)


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
