"""Adapters as part of a reference: what a policy trains, and another adapter on its base model.

A second model around the same weights takes almost no memory, and what is done to it (other
adapters, other modes) does not change the policy.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import nn

from prefopt.engine.probe import inside_peft, is_whole, refuse_virtual_tokens
from prefopt.engine.weight_sharing import copy_sharing_weights

# The file that makes a folder an adapter.
_CONFIG_FILE = "adapter_config.json"

# One of these holds its weights.
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# What to say of weights that torch refuses to unpickle.
PICKLED = "its weights are a pickle of more than tensors, or broken; save them as safetensors"

# What an adapter may have been made for, if it says so.
_TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION")


# Where `with_adapter` notes what it loaded, on the model.
_NOTE = "_prefopt_adapter"


class AdapterError(ValueError):
    """An adapter is not where it should be, or does not fit the model."""


class AdapterPlace(NamedTuple):
    """Where an adapter was loaded from.

    Attributes:
        path: Its folder or id.
        places: Options that say where the files of an id are.
    """

    path: str
    places: Mapping[str, Any]


def place_loaded_from(model: Any) -> AdapterPlace | None:
    """Return where ``with_adapter`` loaded a model's adapter from; None for any other adapter."""
    place: AdapterPlace | None = vars(model).get(_NOTE)
    return place


def is_sharded(model: Any) -> bool:
    """Whether the weights of a model are not all in this process, and cannot be gathered.

    Those that DeepSpeed partitions can: see ``engine.partitioned``.
    """
    return not all(is_whole(parameter) for parameter in model.parameters())


def trains_only_adapters(model: Any) -> bool:
    """Whether nothing of a peft model is trained but what belongs to its adapters.

    False under ``bias="all"``, or where base weights were unfrozen: the base then moves too.
    """
    base = inside_peft(model)
    bare = copy_sharing_weights(base, same=True)
    remove_adapters(bare)
    return not any(parameter.requires_grad for parameter in bare.parameters())


def copy_without_adapters(model: Any, copy_trained: bool = False) -> Any:
    """Return a second model without the adapters of the first, around the same weights.

    The first model, which must not be sharded, stays as it is. With ``copy_trained`` the weights
    that are trained are copied, so that training changes only the first model.
    """
    base = inside_peft(model)
    bare = copy_sharing_weights(base, copy_trained)
    remove_adapters(bare)
    return bare


def remove_adapters(base: Any) -> None:
    """Take the adapters out of a model, without peft's wrapper, as if they had never been there."""
    _unwrap(base)
    vars(base).pop("peft_config", None)
    if getattr(base, "_hf_peft_config_loaded", False):  # transformers added them itself
        base._hf_peft_config_loaded = False


def active_adapters(model: Any) -> list[str]:
    """Return the names of a model's active adapters; of transformers' own too."""
    if not getattr(model, "peft_config", None):
        return []
    active = model.active_adapters
    active = active() if callable(active) else active  # a method where transformers added them
    return [active] if isinstance(active, str) else list(active)


def adapter_containers(model: Any) -> set[str]:
    """Return the names of the attributes of peft's layers that hold a tensor for each adapter."""
    names = {"modules_to_save"}
    for module in model.modules():
        for kind in ("adapter_layer_names", "other_param_names"):
            names.update(name.split(".")[-1] for name in getattr(module, kind, ()))
    return names


def place_of_adapter(
    parts: Sequence[str], names: Collection[str], containers: Collection[str]
) -> int | None:
    """Return which part of a weight's name is the name of one of some adapters; None for none.

    An adapter may be called like a part of the model; what holds it may not.
    """
    places = range(1, len(parts))
    found = (i for i in places if parts[i] in names and parts[i - 1] in containers)
    return next(found, None)


def _unwrap(module: nn.Module) -> None:
    """Put the layers that adapters wrap back in the places of the wrappers."""
    for name, child in module.named_children():
        while (inner := _wrapped_by(child)) is not None:
            child = inner
        setattr(module, name, child)
        _unwrap(child)


def _wrapped_by(module: nn.Module) -> nn.Module | None:
    """Return the layer that a wrapper of peft holds; None if the module is no wrapper."""
    parts = dict(module.named_children())
    if "token_adapter" in parts:  # trains some tokens of an embedding
        parts = dict(parts["token_adapter"].named_children())
    return parts.get("original_module") or parts.get("base_layer")


def with_adapter(
    base: Any,
    path: str,
    *,
    trainable: bool = False,
    places: Mapping[str, Any] = MappingProxyType({}),
    allow_missing: bool = False,
) -> Any:
    """Return a model, which is changed, with a saved adapter (a folder or an id) around it.

    Args:
        base: The model.
        path: Folder or id of the adapter.
        trainable: Whether the adapter is to be trained further; else all is frozen.
        places: Options that say where the files of an id are: its revision, a subfolder...
        allow_missing: Whether weights that the adapter lacks may start as those of a fresh one.

    Raises:
        AdapterError: If there is no adapter, or it does not fit the model.
        ImportError: If peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ImportError("a saved adapter needs peft: pip install 'prefopt[peft]'") from None
    if Path(path).expanduser().exists():
        path = str(Path(path).expanduser())
    config = _configuration(path, places)
    config.inference_mode = not trainable
    # Names that weights had when the adapter was saved, where transformers has changed them since.
    renamed = getattr(base, "_checkpoint_conversion_mapping", None) or {}
    try:
        with warnings.catch_warnings():
            # That the base model is called otherwise than when the adapter was saved.
            warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path`")
            model = peft.get_peft_model(base, config)
        result = model.load_adapter(
            path,
            "default",
            is_trainable=trainable,
            key_mapping=renamed,
            ignore_mismatched_sizes=allow_missing,
            **places,
        )
    except UnpicklingError:
        raise AdapterError(f"the adapter {path} is not loaded: {PICKLED}") from None
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        hint = (
            " If it was trained with more tokens, load the base model yourself, resize its "
            f"embeddings, and pass PeftModel.from_pretrained(base, {path!r}, is_trainable=True)"
        )
        raise AdapterError(
            f"the adapter {path} does not fit the model: {_first_line(error)}"
            f"{hint if 'size mismatch' in str(error) else ''}"
        ) from None
    odd = [key for key in (*result.unexpected_keys, *result.missing_keys) if not _is_shared(key)]
    if odd and not allow_missing:
        raise AdapterError(
            f"the adapter {path} does not fit the model: {len(odd)} of its weights have no place "
            f"there or the reverse, the first is {odd[0]}"
        )
    if not trainable:
        model.requires_grad_(False)
    setattr(model, _NOTE, AdapterPlace(path, dict(places)))
    return model


def _configuration(path: str, places: Mapping[str, Any]) -> Any:
    """Return the peft configuration of a saved adapter.

    Raises:
        AdapterError: If there is none, it is no adapter of a language model, or has no weights.
        ValueError: If the adapter puts virtual tokens before the text.
    """
    import peft

    folder = Path(path, str(places.get("subfolder") or ""))
    if Path(path).exists():
        if not (folder / _CONFIG_FILE).is_file():
            raise AdapterError(f"no adapter in {path}: it has no {_CONFIG_FILE}")
        if not any((folder / name).is_file() for name in _WEIGHT_FILES):
            raise AdapterError(
                f"the adapter {path} has no weights: no {' or '.join(_WEIGHT_FILES)}"
            )
    try:
        config = peft.PeftConfig.from_pretrained(path, **places)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {_first_line(error)}"
        raise AdapterError(f"no adapter at {path} that peft can read: {problem}") from None
    refuse_virtual_tokens(config, path)
    if config.task_type not in (None, *_TASKS):
        raise AdapterError(
            f"the adapter {path} is for the task {config.task_type}, not {_TASKS[0]}"
        )
    return config


def _is_shared(key: str) -> bool:
    """Whether a weight is saved once for all layers of an adapter, which all name it."""
    return any(part in key for part in ("vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d."))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if isinstance(error, RuntimeError) and lines else (lines or [""])[0]
