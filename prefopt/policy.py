"""Get a policy ready to train: load it, its tokenizer and its adapter, as TRL's trainers would."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from prefopt.config import PreferenceConfig

logger = logging.getLogger("prefopt")


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

    Args:
        model: An id, a path, or a model.
        tokenizer: The policy's, which it must fit.
        args: ``model_init_kwargs``, ``trust_remote_code`` and ``disable_dropout`` matter.

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
    return {"dtype": "float32"} | options


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


def load_tokenizer(
    processing_class: Any, model: Any, args: PreferenceConfig
) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with a padding token, loading it from where the model came if need be.

    Args:
        processing_class: A tokenizer, a processor that holds one, or None.
        model: Its configuration names where it was loaded from, and learns the padding token.
        args: ``pad_token`` and ``trust_remote_code`` matter.

    Raises:
        ValueError: If no tokenizer is given and the model does not say where it came from, or
            ``pad_token`` is not in the vocabulary.
        TypeError: If ``processing_class`` is neither a tokenizer nor a processor.
    """
    if processing_class is None:
        source = getattr(model.config, "_name_or_path", "")
        if not source:
            raise ValueError(
                "no tokenizer: the model was not loaded from anywhere, so pass processing_class"
            )
        loading: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type] # read
        processing_class = AutoTokenizer.from_pretrained(
            source,
            trust_remote_code=args.trust_remote_code,
            revision=loading.get("revision"),  # as that of the weights
        )
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            "processing_class must be a tokenizer or a processor with one, got "
            f"{type(processing_class).__name__}"
        )
    if args.pad_token is not None:
        if args.pad_token not in tokenizer.get_vocab():
            raise ValueError(f"pad_token {args.pad_token!r} is not in the tokenizer's vocabulary")
        tokenizer.pad_token = args.pad_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Raise where the tokenizer makes ids that the model has no embedding for.

    Raises:
        ValueError: Saying both sizes.
    """
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings and model.get_input_embeddings().weight.ndim == 2:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds only {embeddings}: "
            "they do not belong together, or model.resize_token_embeddings was forgotten"
        )


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
