"""An adapter merged into its base model and saved as a plain model, loaded again and compared."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.guard import keep_unpacked, undisturbed
from prefopt.engine.probe import probe_inputs
from prefopt.reference.store.verify import tolerance_of
from prefopt.training.loading import SavedAdapter, load_model
from prefopt.training.merging import merge

__all__ = ["MergeReport", "merge_to_folder"]

# Log-probs of tokens that hardly come up are large and rounded much.
_LEAST_CHANCE = 1e-3


@dataclass(frozen=True)
class MergeReport:
    """How what was saved differs from the adapter on its base.

    Attributes:
        base: Id or folder of the base model.
        dtype: In which the model is saved.
        difference: Largest difference of the log-prob of a token with a chance of at least one in a
            thousand; nats.
        tolerance: Up to which it is taken for rounding; nats.
    """

    base: str
    dtype: str
    difference: float
    tolerance: float


def merge_to_folder(
    adapter: str, folder: Path, tokenizer: Any, options: Mapping[str, Any]
) -> MergeReport:
    """Merge a saved adapter into its base model, and save the result with a tokenizer.

    What was saved is loaded again and compared; the folder is there only if that went well.

    Args:
        adapter: Folder or id of the adapter.
        folder: Where to save; it may not exist, or be empty.
        tokenizer: Is saved beside the model, with its chat template.
        options: Of ``from_pretrained``, for the base model.

    Raises:
        ValueError: If it is no adapter, the folder holds something, the adapter cannot be merged,
            or the merged model predicts something else.
        OSError: If there is no such adapter or base model.
    """
    found = SavedAdapter.find(adapter, options)
    if found is None:
        raise ValueError(f"{adapter} is no adapter: there is nothing to merge")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already: name a new folder")
    model = load_model(adapter, options)
    keep_unpacked(model.modules())
    before = _logps(model)
    quantised = getattr(model, "is_quantized", False) or options.get("quantization_config")
    plain = _merged(model, adapter)
    dtype = str(plain.dtype).removeprefix("torch.")
    tolerance = tolerance_of({"dtype": dtype, "quantization": quantised})
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        plain.save_pretrained(part)
        tokenizer.save_pretrained(part)
        del model, plain
        difference = _difference(before, part, dtype, options)
        if not difference <= tolerance:
            raise ValueError(
                f"{adapter} cannot be merged: the merged model predicts something else, log-probs "
                f"differ by up to {difference:.2g} nats, more than {tolerance:g} of rounding in "
                f"{dtype}"
            )
        part.chmod(0o777 & ~_umask())
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return MergeReport(found.base, dtype, difference, tolerance)


def _merged(model: Any, name: str) -> Any:
    try:
        return merge(model)
    except (NotImplementedError, AttributeError, TypeError, ValueError) as error:
        kinds = {type(config).__name__ for config in getattr(model, "peft_config", {}).values()}
        said = str(error) or type(error).__name__
        raise ValueError(f"{name} ({', '.join(sorted(kinds))}) cannot be merged: {said}") from error


@torch.no_grad()
def _logps(model: Any) -> Tensor:
    """Return what a model predicts after each of some tokens; (T, V), nats, float32, on the CPU."""
    with undisturbed(model):
        logits = model(**probe_inputs(model)).logits
    logps: Tensor = logits[0].float().log_softmax(1).cpu()
    return logps


def _difference(before: Tensor, folder: Path, dtype: str, options: Mapping[str, Any]) -> float:
    """Return by how much the log-probs of a saved model differ from others; nats."""
    kept = ("device_map", "attn_implementation")
    given = {name: options[name] for name in kept if name in options}
    after = _logps(load_model(str(folder), {**given, "dtype": dtype}))
    likely = (before.exp() >= _LEAST_CHANCE) | (after.exp() >= _LEAST_CHANCE)
    return (after - before)[likely].abs().max().item()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
