"""Adapters as part of a reference: what a policy trains, and another adapter on its base model.

A second model around the same weights takes almost no memory, and what is done to it (other
adapters, other modes) does not change the policy.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from prefopt.engine.weight_sharing import copy_sharing_weights

# The file that makes a folder an adapter.
_CONFIG_FILE = "adapter_config.json"


class AdapterError(ValueError):
    """An adapter is not where it was said to be, or does not fit the model."""


def is_sharded(model: Any) -> bool:
    """Whether the weights of a model are not all in this process."""
    return any(
        parameter.device.type == "meta"
        or hasattr(parameter, "ds_id")  # DeepSpeed
        or hasattr(parameter, "device_mesh")  # a DTensor
        for parameter in model.parameters()
    )


def trains_only_adapters(model: Any) -> bool:
    """Whether nothing of a peft model is trained but what belongs to its adapters.

    False under ``bias="all"``, or where base weights were unfrozen: the base then moves too.
    """
    trained = {
        parameter.data_ptr()
        for parameter in model.parameters()
        if parameter.requires_grad and parameter.numel()
    }
    return trained.isdisjoint(
        weight.data_ptr() for weight in copy_without_adapters(model).parameters()
    )


def copy_without_adapters(model: Any, copy_trained: bool = False) -> Any:
    """Return a second model without the adapters of the first, around the same weights.

    The first model, which must not be sharded, stays as it is. With ``copy_trained`` the weights
    that are trained are copied, so that training changes only the first model.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    bare = copy_sharing_weights(base, copy_trained)
    _unwrap(bare)
    vars(bare).pop("peft_config", None)
    return bare


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
    return parts.get("original_module") or parts.get("base_layer")


def with_adapter(base: Any, path: str) -> Any:
    """Return a model, which is changed, with a saved adapter (a folder or an id) around it, frozen.

    Raises:
        AdapterError: If there is no adapter, or it does not fit the model.
        ImportError: If peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ImportError(
            "reference='adapter:...' needs peft: pip install 'prefopt[peft]'"
        ) from None
    folder = Path(path).expanduser()
    if folder.exists() and not (folder / _CONFIG_FILE).is_file():
        raise AdapterError(f"no adapter in {path}: it has no {_CONFIG_FILE}")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder) if folder.exists() else path)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise AdapterError(f"no adapter at {path}: {_first_line(error)}") from None
    config.inference_mode = True
    try:
        model = peft.get_peft_model(base, config, adapter_name="reference")
        result = model.load_adapter(
            str(folder) if folder.exists() else path, "reference", is_trainable=False
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise AdapterError(
            f"the adapter {path} does not fit the model: {_first_line(error)}"
        ) from None
    if odd := [*result.unexpected_keys, *result.missing_keys]:
        raise AdapterError(
            f"the adapter {path} does not fit the model: {len(odd)} of its weights have no place "
            f"there or the reverse, the first is {odd[0]}"
        )
    model.requires_grad_(False)
    return model


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if isinstance(error, RuntimeError) and lines else (lines or [""])[0]
