"""The policy as it is given or named, and a model to refer to."""

import os
from typing import Any

from accelerate.utils import DynamoBackend
from torch import nn
from transformers import PreTrainedTokenizerBase

from prefopt.config import PreferenceConfig
from prefopt.engine.compilation import compile_layers
from prefopt.engine.probe import DROPOUTS, JITTER
from prefopt.training.adapter import second_adapter
from prefopt.training.loading import SavedAdapter, check_causal, dtype_of, load_model
from prefopt.training.quantisation import quantization_of
from prefopt.training.tokenizer import check_vocabulary
from prefopt.training.trust import code_explained


def as_given(model: Any) -> Any:
    """Return a model, or its id or path as text; paths may be ``pathlib.Path`` too."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def load_policy(model: Any, args: PreferenceConfig, peft_config: Any = None) -> Any:
    """Return the model to train, with its adapter if it has one.

    Args:
        model: An id, a path, or a model.
        args: ``model_init_kwargs``, ``trust_remote_code`` and ``allow_missing_weights`` matter.
        peft_config: An adapter that will be added; for a model that has none.

    Raises:
        TypeError: If it is neither a name nor a model.
        ValueError: If loading options come with a model that is loaded already, a second adapter
            is asked for, or it is no causal language model.
    """
    options = loading_options(args)
    if not isinstance(model, str):
        if args.model_init_kwargs is not None:
            raise ValueError(only_by_name("model_init_kwargs"))
        check_causal(model, options)
        return model
    if peft_config is not None and SavedAdapter.find(model, options) is not None:
        raise ValueError(second_adapter(f"{model} is"))
    return load_model(model, options, allow_missing=args.allow_missing_weights, trainable=True)


def only_by_name(option: str) -> str:
    """Return what to say of an option of loading that comes with a model that is loaded already."""
    return (
        f"{option} only matters when the model is loaded here, but a model instance was given; "
        "pass its id or path, or leave the option out"
    )


def load_reference(
    model: Any, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig, trusted: bool = True
) -> Any:
    """Return a reference model, frozen.

    Args:
        model: An id, a path, or a model.
        tokenizer: That of the policy.
        args: Those of the run.
        trusted: Whether it is the user who named it, so that its code may run if that is asked for.

    Raises:
        ValueError: If the tokenizer makes ids that the model has no embedding for, or it is no
            causal language model.
    """
    if isinstance(model, str):
        options = loading_options(args, trusted)
        with code_explained(model, trusted, args):
            model = load_model(model, options, allow_missing=args.allow_missing_weights)
    check_vocabulary(tokenizer, model)
    model.requires_grad_(False)
    if args.disable_dropout:
        switch_off_dropout(model)
    return model


def loading_options(args: PreferenceConfig, trusted: bool = True) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` that a run's arguments ask for.

    Args:
        args: The arguments.
        trusted: Whether it is the user who named what is loaded; else its code is not run.

    Raises:
        TypeError: If its quantisation is none.
        ValueError: If there is no such quantisation.
        ImportError: If the package of the quantiser is not installed.
    """
    options: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type] # read
    if options.get("quantization_config") is not None:
        options["quantization_config"] = quantization_of(options["quantization_config"])
    code = args.trust_remote_code or bool(options.get("trust_remote_code"))
    return options | {"trust_remote_code": code and trusted}


def reference_options(args: PreferenceConfig, trusted: bool = True) -> dict[str, Any]:
    """Return what decides, beside its name, which model ``load_reference`` returns."""
    options = loading_options(args, trusted)
    options["dtype"] = str(dtype_of(options)).replace("torch.", "")
    options.pop("torch_dtype", None)
    return options


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


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0, those in attention and the noise of routers included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in (*DROPOUTS, *JITTER):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def compile_policy(model: nn.Module, args: PreferenceConfig, accelerator: Any) -> None:
    """Compile a model's layers if that is asked for, and leave accelerate nothing to compile.

    Raises:
        ValueError: If there is no layer to compile.
    """
    if args.torch_compile:
        accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # of the model as a whole
        backend, mode = args.torch_compile_backend, args.torch_compile_mode
        compile_layers(model, backend=backend, mode=mode)
