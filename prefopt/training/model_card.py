"""The README.md of a trained model: with what it was trained, to understand and cite it."""

from pathlib import Path
from typing import Any

import torch
import transformers

import prefopt


def write_model_card(folder: str | Path, trainer: Any) -> None:
    """Write ``README.md`` into the folder of a saved model."""
    Path(folder, "README.md").write_text(model_card(trainer), encoding="utf-8")


def model_card(trainer: Any) -> str:
    """Return the text of a model card, with the metadata that the Hub reads."""
    base = getattr(trainer.model.config, "_name_or_path", "") or ""
    losses = (term.loss.name for term in trainer.objective.terms)
    tags = dict.fromkeys([*trainer._tag_names, "preference-optimisation", *losses])
    metadata = ["library_name: transformers", "tags:", *(f"- {tag}" for tag in tags)]
    if base and not Path(base).exists():  # a folder of the author's machine says nothing on the Hub
        metadata.append(f"base_model: {base}")
    lines = ["---", *metadata, "---", "", f"# {Path(trainer.args.output_dir).name}", ""]
    lines.append(
        f"{'A fine-tuned version of `' + base + '`' if base else 'A language model'} aligned with "
        f"prefopt {prefopt.__version__} on preference data."
    )
    lines += ["", "## Objective", "", f"`{trainer.objective.name}`", ""]
    for term in trainer.objective.terms:
        values = {**term.loss.hyperparameters, **term.hyperparameters, **term.options.chosen()}
        settings = ", ".join(f"{name}={value}" for name, value in values.items())
        lines.append(
            f"- **{term.loss.name}** ({settings}): {term.loss.summary}. {term.loss.source}"
        )
    args = trainer.args
    lines += ["", "## Training", ""]
    lines.append(f"- steps: {trainer.state.global_step}, epochs: {trainer.state.epoch or 0:.2f}")
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    lines.append(f"- examples per optimiser step: {batch}")
    lines.append(f"- learning rate: {args.learning_rate}, optimiser: {args.optim}")
    lines.append(f"- max_length: {trainer.max_length} tokens, layout: {trainer.scorer.layout}")
    lines.append(f"- transformers {transformers.__version__}, torch {torch.__version__}")
    lines += _final_metrics(trainer)
    return "\n".join(lines) + "\n"


def _final_metrics(trainer: Any) -> list[str]:
    evaluated = [
        entry for entry in trainer.state.log_history if any("eval" in key for key in entry)
    ]
    if not evaluated:
        return []
    rows = [
        f"| {name} | {value:.4g} |"
        for name, value in evaluated[-1].items()
        if name.startswith("eval_") and isinstance(value, float)
    ]
    return ["", "## Last evaluation", "", "| metric | value |", "|---|---|", *rows]
