"""Models to ask, not to train: on the accelerator, in the dtype of their checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch

from prefopt.training.loading import SavedAdapter, load_model
from prefopt.training.tokenizer import check_vocabulary, read_tokenizer

__all__ = ["best_device", "inference_options", "load_for_inference", "tokenizer_of"]


def load_for_inference(name: str, options: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """Return a causal language model, or an adapter on its base, and its tokenizer.

    Args:
        name: An id on the Hub or a folder.
        options: Of ``from_pretrained``; see ``inference_options``.

    Raises:
        OSError: If there is no such model.
        ValueError: If it is no causal language model, or the tokenizer is of another one.
    """
    given = inference_options(options)
    model = load_model(name, given)
    model.requires_grad_(False)
    tokenizer = tokenizer_of(name, given)
    check_vocabulary(tokenizer, model)
    return model.eval(), tokenizer


def inference_options(options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return options of ``from_pretrained``, with what is not given filled in.

    The accelerator of the machine, if it has one, and there the dtype of the checkpoint; on a CPU
    float32, for half precision is slow there.

    Args:
        options: Those that are given.
    """
    device = best_device()
    if device.type == "cpu":
        return {"dtype": torch.float32, **(options or {})}
    return {"dtype": "auto", "device_map": {"": device}, **(options or {})}


def best_device() -> torch.device:
    """Return the accelerator of this machine, or its CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


def tokenizer_of(name: str, options: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a model; of an adapter without one, that of its base model.

    Args:
        name: Id or folder of the model.
        options: Of ``from_pretrained``, as the model is loaded with.

    Raises:
        OSError: If there is none.
        ValueError: If it cannot be read.
    """
    names = ("revision", "trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only")
    places = {key: options[key] for key in names if options.get(key) is not None}
    adapter = SavedAdapter.find(name, options)
    try:
        return read_tokenizer(name, **places)
    except (OSError, ValueError):
        if adapter is None:
            raise
    base = adapter.base_options(places)
    return read_tokenizer(adapter.base, **base)
