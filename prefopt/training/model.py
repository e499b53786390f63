"""The policy: loaded, with its adapter, as TRL's trainers would; and a model to refer to."""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerBase,
)

from prefopt.config import PreferenceConfig
from prefopt.training.tokenizer import check_vocabulary


def load_policy(model: Any, args: PreferenceConfig, quantization_config: Any = None) -> Any:
    """Return the model to train.

    Args:
        model: An id, a path, or a model.
        args: ``model_init_kwargs`` and ``trust_remote_code`` matter.
        quantization_config: For a model given by id or path only.

    Raises:
        ValueError: If loading options come with a model that is loaded already, or quantisation is
            asked for twice.
    """
    options: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type] # parsed
    if not isinstance(model, str):
        for name, value in (
            ("model_init_kwargs", args.model_init_kwargs),
            ("quantization_config", quantization_config),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} only matters when the model is loaded here, but a model instance was "
                    "given; pass its id or path, or leave the option out"
                )
        return model
    if quantization_config is not None:
        if "quantization_config" in options:
            raise ValueError(
                "quantization_config is given twice: to the trainer and in model_init_kwargs"
            )
        options["quantization_config"] = quantization_config
    return load_causal_lm(model, args.trust_remote_code, options)


def load_reference(model: Any, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig) -> Any:
    """Return a reference model, frozen.

    Raises:
        ValueError: If the tokenizer makes ids that the model has no embedding for.
    """
    if isinstance(model, str):
        options: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type] # read
        model = load_causal_lm(model, args.trust_remote_code, options)
    check_vocabulary(tokenizer, model)
    model.requires_grad_(False)
    if args.disable_dropout:
        switch_off_dropout(model)
    return model


def reference_options(args: PreferenceConfig) -> dict[str, Any]:
    """Return what decides, beside its name, which model ``load_reference`` returns."""
    options: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type] # read
    return {"dtype": "float32", "trust_remote_code": args.trust_remote_code} | options


def load_causal_lm(name: str, trust_remote_code: bool, options: dict[str, Any]) -> Any:
    """Return a causal language model from an id or path; float32 unless ``dtype`` says otherwise.

    A checkpoint that also reads images is loaded whole, so that it is saved whole.

    Master weights in half precision lose updates of the size of a preference step, so half
    precision is the user's explicit choice, not that of the checkpoint's author.
    """
    dtype = options.get("dtype", "float32")
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    options = {"trust_remote_code": trust_remote_code, **options, "dtype": dtype}
    return _auto_class(name, options).from_pretrained(name, **options)


def _auto_class(name: str, options: dict[str, Any]) -> Any:
    """Return the class that loads a checkpoint with all its parts."""
    sources = ("trust_remote_code", "revision", "code_revision", "subfolder", "token", "cache_dir")
    known = {option: options[option] for option in sources if option in options}
    try:
        config = options.get("config") or AutoConfig.from_pretrained(name, **known)
    except (OSError, ValueError):  # an adapter by itself, or an error that loading explains better
        return AutoModelForCausalLM
    whole = (getattr(config, "architectures", None) or [""])[0]
    reads_images = type(config) in AutoModelForImageTextToText._model_mapping
    if reads_images and whole.endswith("ForConditionalGeneration"):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def learned_positions(model: Any) -> int | None:
    """Return how many positions a model has learned one by one (GPT-2, OPT); None for no such end.

    Rotary positions have no last one; a table of embeddings does, and a longer text would crash.
    """
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    tokens = model.get_input_embeddings()
    for module in model.modules():
        # OPT keeps two rows more than it has positions.
        if (
            isinstance(module, nn.Embedding)
            and module is not tokens
            and module.num_embeddings - most in (0, 1, 2)
        ):
            return int(most)
    return None


def add_adapter(model: Any, peft_config: Any, args: PreferenceConfig) -> Any:
    """Return the model with an adapter around it if one is asked for.

    Raises:
        ImportError: If peft is not installed.
        TypeError: If ``peft_config`` is not a peft configuration.
        ValueError: If the model has an adapter already.
    """
    if peft_config is not None:
        try:
            import peft
        except ImportError:
            raise ImportError("peft_config needs peft: pip install 'prefopt[peft]'") from None
        if not isinstance(peft_config, peft.PeftConfig):
            raise TypeError(
                f"peft_config must be a peft.PeftConfig, got {type(peft_config).__name__}"
            )
        if is_peft(model):
            raise ValueError(
                "the model has an adapter already and peft_config asks for another; merge the "
                "first (model.merge_and_unload()), or leave peft_config out to train it further"
            )
        model = peft.get_peft_model(model, peft_config)
    if is_peft(model) and args.gradient_checkpointing:
        # Frozen embeddings would leave the checkpointed layers without any input that wants
        # gradients.
        model.enable_input_require_grads()
    return model


def is_peft(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def switch_off_dropout(model: nn.Module) -> None:
    """Set the probability of every dropout of a model to 0, those in attention included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
