"""Tiny random models of many architectures, a tokenizer and rows for them; nothing is loaded."""

import copy
import warnings
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

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

# Architectures that name these fields their own way, or have no attention to describe.
_BARE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# A window shorter than the prompts of the tests.
_WINDOW = {"sliding_window": 6}

_HEADS_OF_8 = _COMMON | {"head_dim": 8}

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

_SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "qwen2": ("Qwen2Config", _COMMON),
    "qwen3": ("Qwen3Config", _HEADS_OF_8),
    "qwen3_moe": ("Qwen3MoeConfig", _HEADS_OF_8 | _EXPERTS),
    "mixtral": ("MixtralConfig", _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mistral": ("MistralConfig", _COMMON | _WINDOW),
    # Caps low enough to bend the scores and logits of a tiny model.
    "gemma2": (
        "Gemma2Config",
        _HEADS_OF_8
        | _WINDOW
        | {
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        _HEADS_OF_8
        | _WINDOW
        | {
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
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
    "phi": ("PhiConfig", _COMMON),
    "phi3": ("Phi3Config", _COMMON),
    "opt": ("OPTConfig", _COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "cohere": ("CohereConfig", _COMMON | {"logit_scale": 0.5}),
    # Three sliding layers, and one that sees everything and no positions.
    "cohere2": (
        "Cohere2Config",
        _HEADS_OF_8 | _WINDOW | {"num_hidden_layers": 4, "logit_scale": 0.5},
    ),
    "olmo2": ("Olmo2Config", _COMMON),
    # The last of its four layers has no rotary positions.
    "smollm3": ("SmolLM3Config", _COMMON | {"num_hidden_layers": 4}),
    "starcoder2": ("Starcoder2Config", _COMMON | _WINDOW),
    "granite": ("GraniteConfig", _COMMON | {"logits_scaling": 3.0, "attention_multiplier": 0.7}),
    "deepseek_v3": (
        "DeepseekV3Config",
        _COMMON
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        _HEADS_OF_8
        | _WINDOW
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}

_PADDED_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", _BARE | {"num_hidden_layers": 2, "state_size": 4}),
    "falcon_mamba": ("FalconMambaConfig", _BARE | {"num_hidden_layers": 2, "state_size": 4}),
    # Their attention ignores registered functions: the probe must notice.
    "bloom": ("BloomConfig", _BARE | {"n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", _BARE | {"num_hidden_layers": 2, "num_attention_heads": 4}),
    # Its layers keep keywords from their attention, and so the plan: the probe must notice.
    "stablelm": ("StableLmConfig", _COMMON),
}

_MAMBA = {"mamba_d_head": 16, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_LINEAR_FIRST = {"layer_types": ["linear_attention", "full_attention"]}

# Layers that carry a state from token to token, and take one to start from.
_RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": (
        "Qwen3NextConfig",
        _HEADS_OF_8
        | _EXPERTS
        | _GATED_DELTA
        | _LINEAR_FIRST
        | {"shared_expert_intermediate_size": 16},
    ),
    "qwen3_5": ("Qwen3_5TextConfig", _HEADS_OF_8 | _GATED_DELTA | _LINEAR_FIRST),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig",
        _HEADS_OF_8
        | _EXPERTS
        | _GATED_DELTA
        | _LINEAR_FIRST
        | {"shared_expert_intermediate_size": 16},
    ),
    "olmo_hybrid": ("OlmoHybridConfig", _COMMON | _GATED_DELTA | _LINEAR_FIRST),
    "kimi_linear": (
        "KimiLinearConfig",
        _COMMON
        | _LINEAR_FIRST
        | {
            "num_key_value_heads": 4,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "mamba2": (
        "Mamba2Config",
        _BARE
        | {
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "use_bias": True,
        },
    ),
    "bamba": (
        "BambaConfig",
        _COMMON | _MAMBA | {"mamba_d_state": 8, "attn_layer_indices": [1]},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        _COMMON
        | _MAMBA
        | _LINEAR_FIRST
        | {
            "mamba_d_state": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
            "residual_multiplier": 0.7,
        },
    ),
    "falcon_h1": (
        "FalconH1Config",
        _HEADS_OF_8 | _MAMBA | {"mamba_d_ssm": 64, "mamba_d_state": 8},
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {key: value for key, value in _HEADS_OF_8.items() if key != "num_hidden_layers"}
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
    "zamba2": (
        "Zamba2Config",
        _COMMON
        | {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "chunk_size": 8,
        },
    ),
    "lfm2": (
        "Lfm2Config",
        _COMMON
        | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64, "conv_bias": True},
    ),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        _COMMON | _EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
}

# Layers whose state cannot be given; they share no prefixes.
_HYBRID: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": (
        "JambaConfig",
        _COMMON
        | {
            "num_hidden_layers": 4,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        _HEADS_OF_8
        | {
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 16,
        },
    ),
}
RECURRENT = list(_RECURRENT)
HYBRID = list(_HYBRID)

_ARCHITECTURES = _SHARING | _PADDED_ONLY | _RECURRENT | _HYBRID
SHARING = list(_SHARING)
PADDED_ONLY = list(_PADDED_ONLY)


# Models that read images too; the ids of images and their like lie beyond those of words.
_TEXT = _COMMON | {"vocab_size": VOCABULARY + 7}
_IMAGE_IDS = {"image_token_id": 97, "video_token_id": 98}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

_MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3_vision": (
        "Gemma3Config",
        {
            "text_config": _TEXT
            | _WINDOW
            | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
            "vision_config": _VISION,
            "image_token_index": 97,
            "boi_token_index": 98,
            "eoi_token_index": 99,
            "mm_tokens_per_image": 4,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {
            "text_config": _TEXT | {"rope_parameters": _MROPE},
            "vision_config": {
                "depth": 1,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
            },
        }
        | _IMAGE_IDS,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": _TEXT | {"rope_parameters": _MROPE},
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 16,
                "num_heads": 2,
                "fullatt_block_indexes": [0],
            },
        }
        | _IMAGE_IDS,
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _VISION | {"model_type": "clip_vision_model"},
            "image_token_index": 97,
        },
    ),
}
# Models that read a prompt both ways, and so share none of it.
_PREFIX_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "paligemma": (
        "PaliGemmaConfig",
        {
            "text_config": _TEXT | {"model_type": "gemma", "head_dim": 8},
            "vision_config": _VISION | {"model_type": "siglip_vision_model"},
            "image_token_index": 97,
            "projection_dim": 32,
        },
    ),
}
# One whose text part has recurrent layers.
_RECURRENT_MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_vision": (
        "Qwen3_5Config",
        {
            "text_config": _TEXT | {"head_dim": 8} | _GATED_DELTA | _LINEAR_FIRST,
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
            },
        }
        | _IMAGE_IDS,
    ),
}
_IMAGE_READERS = _MULTIMODAL | _PREFIX_MODELS | _RECURRENT_MULTIMODAL
MULTIMODAL = list(_MULTIMODAL)


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


def tiny_config(name: str, **changes: Any) -> PretrainedConfig:
    """Return the configuration of a tiny model."""
    config, fields = (_ARCHITECTURES | _IMAGE_READERS)[name]
    return getattr(transformers, config)(**copy.deepcopy(fields | changes))


def tiny_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """Return a tiny model with large random weights, in evaluation mode."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reads_images = name in _IMAGE_READERS
        auto = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
        # Where transformers takes sdpa for it (5.17), soft caps are lost.
        attention = {"attn_implementation": "eager"} if name == "gemma2" else {}
        model = auto.from_config(tiny_config(name, **changes), **attention)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Biases and attention sinks start at nearly zero, where ignoring them would not show.
            if parameter.ndim > 1 or path.endswith(("bias", "sinks")):
                parameter.normal_(0, _WEIGHT_STD)
                if path.endswith("sinks"):
                    parameter.mul_(10)
    return model.eval()


def move(model: Any, seed: int = 1) -> Any:
    """Move what a model trains by random numbers, in place; return the model."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
