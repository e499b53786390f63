"""Models by id or path: in the dtype asked for, with every weight found, or with their adapter.

What a checkpoint is, is decided from its configuration, before weights are read.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.utils.peft_utils import find_adapter_config_file

from prefopt.engine.probe import inside_peft, refuse_encoder_decoder
from prefopt.reference.adapters import PICKLED, with_adapter
from prefopt.training.quantisation import (
    QuantiserError,
    check_as_asked,
    leave_file,
    quantiser_explained,
)
from prefopt.training.trust import check_code, check_code_of_base

# Options of `from_pretrained` that say where files are, in the order in which they are documented.
_PLACES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")

# Files of a folder that hold the weights of a whole model.
_MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin", "model*.safetensors.index.json")

_FILES_TOLD = 6  # of a folder that is no model
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_model(
    name: str,
    options: Mapping[str, Any],
    *,
    allow_missing: bool = False,
    trainable: bool = False,
) -> Any:
    """Return a causal language model by id or path; of an adapter, its base model with it.

    Args:
        name: An id on the Hub or a folder.
        options: Of ``from_pretrained``; for an adapter, those of its base model.
        allow_missing: Whether weights that are not found may start at random.
        trainable: Whether an adapter is to be trained further.

    Raises:
        ValueError: If it is no causal language model, a dtype is none, or weights are not found.
        ImportError: If it is an adapter and peft is not installed.
        OSError: If there is no such model.
    """
    options = dict(options)
    adapter = SavedAdapter.find(name, options)
    if adapter is None:
        return _load_whole(name, options, allow_missing)
    check_code_of_base(name, adapter.base, options)
    try:
        base = _load_whole(adapter.base, adapter.base_options(options), allow_missing)
    except OSError as error:
        if Path(adapter.base).is_dir():  # what it lacks, the error says
            raise
        raise OSError(adapter.without_base(error)) from None
    return with_adapter(
        base, name, trainable=trainable, places=adapter.places, allow_missing=allow_missing
    )


def _load_whole(name: str, options: Mapping[str, Any], allow_missing: bool) -> Any:
    """Return a model that is no adapter; float32 unless ``dtype`` says otherwise.

    A checkpoint that also reads images is loaded whole, so that it is saved whole.

    Master weights in half precision lose updates of the size of a preference step, so half
    precision is the user's explicit choice, not that of the checkpoint's author.
    """
    options = {key: value for key, value in options.items() if key != "torch_dtype"} | {
        "dtype": dtype_of(options)
    }
    if name.startswith((".", "/", "~")) and not Path(name).exists():
        raise OSError(f"there is no model in {name}: no such folder")
    if Path(name).is_file():
        raise OSError(f"there is no model in {name}: it is a file, name the folder of a model")
    check_code(name, options)
    model_class = _auto_class(name, options)
    with explained("model", name), quantiser_explained(name, options):
        model, info = model_class.from_pretrained(
            name,
            # Weights of another shape are reported below, with all others.
            **{**options, "ignore_mismatched_sizes": True, "output_loading_info": True},
        )
    _check_weights(name, model, info, allow_missing)
    check_as_asked(name, options, model)
    leave_file(model)
    return model


@contextmanager
def explained(what: str, name: str) -> Iterator[None]:
    """Let errors of loading say in one sentence what could not be loaded.

    Raises:
        OSError: For an error of the system, such as a file that is not there.
        ValueError: For any other wrong input.
    """
    try:
        yield
    except (RuntimeError, ImportError, QuantiserError):  # of the machine, not of what is loaded
        raise
    except Exception as error:  # tokenizers and safetensors have classes of their own
        kind = OSError if isinstance(error, OSError) else ValueError
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if "trust_remote_code" in str(error):
            said = "it comes with code of its own, which trust_remote_code=True runs; read it first"
        elif isinstance(error, UnpicklingError):
            said = PICKLED
        elif (file := _broken_file(Path(name))) is not None:
            said += f" ({file} is cut off or damaged)"
        raise kind(f"can't load the {what} {name}: {said}") from error


def _broken_file(folder: Path) -> Path | None:
    """Return the first file of weights or fields of a folder that can't be read; None for none."""
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError):
            return file
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return file
    return None


# Data types ---------------------------------------------------------------------------------------


def dtype_of(options: Mapping[str, Any]) -> Any:
    """Return in what a model is loaded: ``dtype`` or, as it was called before, ``torch_dtype``.

    Returns:
        A ``torch.dtype``, ``"auto"`` or a dictionary of such by part of the model.

    Raises:
        ValueError: If both are given and differ, or one is no floating dtype.
    """
    given = {
        name: _dtype(name, options[name])
        for name in ("dtype", "torch_dtype")
        if options.get(name) is not None
    }
    values = list(given.values())
    if any(value != values[0] for value in values):
        raise ValueError(
            f"model_init_kwargs gives dtype={options['dtype']!r} and "
            f"torch_dtype={options['torch_dtype']!r}, which are two names of one option; leave one "
            "of them out"
        )
    return values[0] if values else torch.float32


def _dtype(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {part: _dtype(f"{name}[{part!r}]", its) for part, its in value.items()}
    if value == "auto":
        return value
    known = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(known, torch.dtype) or not known.is_floating_point or known.itemsize < 2:
        raise ValueError(
            f"{name} in model_init_kwargs must be one of {', '.join(_DTYPES)} or auto, got "
            f"{value!r}; fewer bits are asked for by quantization_config"
        )
    return known


# What kind of model it is -------------------------------------------------------------------------


def check_causal(model: Any, options: Mapping[str, Any], called: str = "model") -> None:
    """Raise where a model, or one by id or path, is no causal language model.

    A name under which nothing is found is left to what loads it.

    Args:
        model: The model, its id or path.
        options: Of ``from_pretrained``.
        called: As which argument it is given.

    Raises:
        TypeError: If it is neither a name nor a model of transformers or peft.
        ValueError: If it is an encoder-decoder, or transformers has no causal model of its kind.
    """
    if isinstance(model, str):
        adapter = SavedAdapter.find(model, options)
        if adapter is not None:
            model, options = adapter.base, adapter.base_options(options)
        _auto_class(model, options)
        return
    inner = inside_peft(model)
    inner = getattr(inner, "_orig_mod", inner)  # by torch.compile
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            f"{called} must be an id, a path, or a model of transformers or peft, got "
            f"{type(inner).__name__}"
        )
    refuse_encoder_decoder(inner.config, type(inner).__name__)
    if inner.get_output_embeddings() is None:
        raise ValueError(
            f"{called} is a {type(inner).__name__}, which has no output layer over the vocabulary; "
            "load it with AutoModelForCausalLM"
        )


def _auto_class(name: str, options: Mapping[str, Any]) -> Any:
    """Return the class that loads a checkpoint with all its parts.

    Raises:
        ValueError: If it is an encoder-decoder, or there is none.
    """
    sources = (*_PLACES, "trust_remote_code", "code_revision", "subfolder")
    known = {option: options[option] for option in sources if option in options}
    check_code(name, options)
    try:
        config = options.get("config") or AutoConfig.from_pretrained(name, **known)
    except (OSError, ValueError):
        _check_folder(name, options)
        return AutoModelForCausalLM  # whose error explains it better
    refuse_encoder_decoder(config, name)
    whole = (getattr(config, "architectures", None) or [""])[0]
    reads_images = type(config) in AutoModelForImageTextToText._model_mapping
    if reads_images and whole.endswith("ForConditionalGeneration"):
        return AutoModelForImageTextToText
    if type(
        config
    ) not in AutoModelForCausalLM._model_mapping and "AutoModelForCausalLM" not in getattr(
        config, "auto_map", {}
    ):
        raise ValueError(
            f"{name} is a {config.model_type} model ({type(config).__name__}); transformers has no "
            "causal language model of that kind, and prefopt trains no other"
        )
    return AutoModelForCausalLM


def _check_folder(name: str, options: Mapping[str, Any]) -> None:
    """Raise for a folder without a model; it may hold models or adapters in folders of their own.

    Raises:
        ValueError: Saying what it holds.
    """
    folder = Path(name).expanduser() / str(options.get("subfolder") or "")
    if not folder.is_dir() or (folder / "config.json").is_file() or options.get("gguf_file"):
        return
    adapters = sorted(folder.glob("*/adapter_config.json"))
    if adapters:
        places = ", ".join(str(file.parent) for file in adapters)
        raise ValueError(f"{name} is no model and no adapter, but holds adapters: give {places}")
    models = [str(file.parent) for file in sorted(folder.glob("*/config.json"))]
    held = [item.name for item in sorted(folder.iterdir())]
    found = ", ".join(held[:_FILES_TOLD]) + ", ..." * (len(held) > _FILES_TOLD)
    raise ValueError(
        f"{folder} has no config.json, so it is not the folder of a model; "
        + (f"models are in {', '.join(models)}" if models else f"it holds {found or 'nothing'}")
    )


# Weights ------------------------------------------------------------------------------------------


def _check_weights(name: str, model: Any, info: Mapping[str, Any], allow_missing: bool) -> None:
    """Raise where weights of a model were not in its checkpoint, or the checkpoint is of another.

    Raises:
        ValueError: If weights are missing or of another shape, or the checkpoint was saved as a
            model of another class and has weights that have no place in this one.
    """
    missing, others = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    shapes = sorted(info["mismatched_keys"])
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of its weights, the first is {missing[0]}")
    if shapes:
        key, theirs, ours = shapes[0]
        problems.append(
            f"has {len(shapes)} of other shapes, the first is {key} with {tuple(theirs)} instead "
            f"of {tuple(ours)}"
        )
    made_for = (getattr(model.config, "architectures", None) or [type(model).__name__])[0]
    if others:
        problems.append(
            f"has {len(others)} for which a {type(model).__name__} has no place, the first is "
            f"{others[0]}"
        )
    if not problems:
        return
    text = f"the checkpoint {name} {', and '.join(problems)}"
    if allow_missing or not (missing or shapes or made_for != type(model).__name__):
        started = "; what is not there starts at random" if missing or shapes else ""
        warnings.warn(f"{text}{started}", stacklevel=2)
        return
    hint = f" (it was saved as a {made_for})" if made_for != type(model).__name__ else ""
    raise ValueError(
        f"{text}{hint}. Missing ones would start at random and others be lost: give the whole "
        "checkpoint of a causal language model, or set allow_missing_weights=True"
    )


# Adapters -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in a folder or on the Hub, and the base model that it names.

    Attributes:
        name: Its folder or id.
        base: Folder or id of its base model.
        revision: Of the base model; None if the adapter names none.
        places: Options that say where its files are.
    """

    name: str
    base: str
    revision: str | None
    places: Mapping[str, Any]

    @classmethod
    def find(cls, name: str, options: Mapping[str, Any]) -> "SavedAdapter | None":
        """Return the adapter of that name; None if it is a model, or nothing.

        Raises:
            ValueError: If it names no base model, or one that is an adapter too, or it is not clear
                whether the adapter is meant or a model in the same folder.
        """
        places = {key: options[key] for key in (*_PLACES, "subfolder") if key in options}
        file = _adapter_config(name, places)
        if file is None:
            return None
        try:
            fields = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is no JSON object: {error}") from None
        base = str(fields.get("base_model_name_or_path") or "")
        adapter = cls(name, base, fields.get("revision"), places)
        if not base:
            raise ValueError(adapter.without_base())
        whole = [model for kind in _MODEL_FILES for model in Path(name).glob(kind)]
        if whole:
            raise ValueError(
                f"{name} holds a model ({whole[0].name}) and an adapter (adapter_config.json): "
                "move one of them elsewhere, or load what you mean yourself and pass that"
            )
        if _adapter_config(base, adapter.base_options(places)) is not None:
            raise ValueError(
                f"{name} is an adapter on {base}, which is an adapter itself: merge that one into "
                "its base model (merge_and_unload, save_pretrained) and name the result in "
                f"{name}/adapter_config.json"
            )
        return adapter

    def base_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options to load the base model with, of those given for the adapter."""
        others = {key: value for key, value in options.items() if key != "subfolder"}
        if "trust_remote_code" in others:  # it is the adapter that names it, not the user
            others["trust_remote_code"] = False
        on_hub = not Path(self.name).is_dir()
        # A revision is that of what was named; a folder has none. "main" is what one says for none.
        if self.revision and (on_hub or others.get("revision", "main") == "main"):
            others["revision"] = self.revision
        elif on_hub:
            others.pop("revision", None)
        return others

    def without_base(self, error: Exception | None = None) -> str:
        """Return what to say where the base model is not found."""
        named = (
            f"names as its base model {self.base!r}, which is no folder (looked for in "
            f"{Path.cwd()}) and not found on the Hub ({str(error).splitlines()[0]})"
            if error is not None
            else "does not name its base model"
        )
        return (
            f"the adapter {self.name} {named}. Correct base_model_name_or_path in its "
            "adapter_config.json, or load the base model yourself and pass PeftModel."
            f"from_pretrained(base, {self.name!r}, is_trainable=True) as model"
        )


def _adapter_config(name: str, places: Mapping[str, Any]) -> Path | None:
    """Return the file that makes a folder or an id an adapter; None if there is none."""
    if Path(name).is_dir():  # whose subfolder transformers overlooks before 5.18
        own = Path(name, str(places.get("subfolder") or ""), "adapter_config.json")
        return own if own.is_file() else None
    try:
        file = find_adapter_config_file(name, **places)
    except OSError:  # neither a folder nor an id: what loads it says so
        return None
    return None if file is None else Path(file)
