"""Train tiny models in tests: arguments that log each step and touch nothing but a folder."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefopt import PreferenceConfig, PreferenceTrainer
from tests.models import tiny_model, tiny_tokenizer

# accelerate collects garbage whenever training starts; libraries are none, and many objects.
gc.freeze()


def config(folder: Path, **changes: Any) -> PreferenceConfig:
    """Return arguments for a few steps, each logged."""
    fields = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return PreferenceConfig(**(fields | changes))


def trainer(folder: Path, train: Any, model: Any = None, **options: Any) -> PreferenceTrainer:
    """Return a trainer; options of its constructor by name, all others go to ``config``."""
    names = (
        "ref_model",
        "eval_dataset",
        "peft_config",
        "compute_metrics",
        "quantization_config",
        "optimizers",
    )
    own = {name: options.pop(name) for name in names if name in options}
    tokenizer = options.pop("processing_class", None) or tiny_tokenizer()
    return PreferenceTrainer(
        tiny_model("llama") if model is None else model,
        args=config(folder, **options),
        train_dataset=train,
        processing_class=tokenizer,
        **own,
    )


def steps(trained: PreferenceTrainer) -> list[dict[str, float]]:
    """Return what was logged at each optimiser step."""
    return [entry for entry in trained.state.log_history if "loss" in entry]


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Inside, an operation for which the CPU waits for the GPU raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
