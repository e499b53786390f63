"""Trackers of a run (TensorBoard, Weights & Biases, ...), and what callbacks of TRL ask for."""

from importlib.util import find_spec
from typing import Any

from datasets import Dataset

# The packages of those that are common, by the name in ``report_to``; any of them will do.
_PACKAGES = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "swanlab": ("swanlab",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
    "codecarbon": ("codecarbon",),
}


def check_trackers(args: Any) -> None:
    """Raise where a tracker is asked for that is not installed, before anything is loaded.

    Args:
        args: ``transformers.TrainingArguments``.

    Raises:
        ValueError: Saying how to install it.
    """
    for name in args.report_to or ():
        packages = _PACKAGES.get(name, ())
        if packages and not any(find_spec(package) for package in packages):
            raise ValueError(
                f"report_to={name}: {packages[0]} is not installed; pip install {packages[0]}, or "
                "leave report_to out"
            )


def give_prompts(callback: Any, tokenizer: Any) -> None:
    """Let a callback that generates from ``eval_dataset["prompt"]`` find it.

    Such are TRL's ``LogCompletionsCallback`` and ``WeaveCallback``, made with a trainer whose rows
    are token ids by then.

    Args:
        callback: Any callback; one that holds no prepared rows is left alone.
        tokenizer: Writes the prompts out.
    """
    rows = getattr(callback, "eval_dataset", None)
    if not isinstance(rows, Dataset) or "prompt_ids" not in rows.column_names:
        return
    if "prompt" not in rows.column_names:
        texts = tokenizer.batch_decode(rows["prompt_ids"][:])
        callback.eval_dataset = Dataset.from_dict({"prompt": texts})
