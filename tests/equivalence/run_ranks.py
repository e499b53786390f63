"""Train tiny models and write what came out; started once per process by the tests beside it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from prefopt import PreferenceTrainer
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

# What rows may say beside their text; values that repeat in neither batches nor ranks.
COLUMNS = {"margin": [0.5, 1.5, -0.5, 1.0, 2.0], "weight": [1.0, 0.25, 2.0]}


def rows(count: int, kind: str, columns: list[str], seed: int = 0) -> Dataset:
    """Return tiny rows with some of ``COLUMNS``."""
    made = tiny_rows(count, kind, seed)
    for name in columns:
        values = COLUMNS[name]
        made = made.add_column(name, [values[i % len(values)] for i in range(count)])
    return made


def train(
    folder: Path,
    kind: str = "paired",
    *,
    batch_size: int,
    architecture: str = "llama",
    columns: tuple[str, ...] = (),
    other_reference: bool = False,
    count: int = 24,
    evaluated: int = 7,
    streamed: bool = False,
    **options: Any,
) -> PreferenceTrainer:
    """Train steps of ``batch_size`` examples each, over all processes: three, or as options say."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulated = options.setdefault("gradient_accumulation_steps", 1)
    options.setdefault("log_throughput", False)  # other numbers each time
    data = rows(count, kind, list(columns))
    trained = trainer(
        folder,
        data.to_iterable_dataset(num_shards=3) if streamed else data,
        model=tiny_model(architecture),
        ref_model=tiny_model(architecture, seed=3) if other_reference else None,
        eval_dataset=rows(evaluated, kind, list(columns), seed=1),
        per_device_train_batch_size=batch_size // processes // accumulated,
        ddp_find_unused_parameters=False,
        # Adam's first steps go as far for a gradient of rounding errors as for any other.
        optim="sgd",
        **options,
    )
    trained.train()
    return trained


def main(folder: Path) -> None:
    """Train each case of ``cases.json`` and write losses, gradient norms, metrics and weights."""
    cases: dict[str, Any] = json.loads((folder / "cases.json").read_text())
    results, kept = {}, []
    for name, case in cases.items():
        trained = train(folder / name, **case)
        evaluated = trained.evaluate()
        predicted = trained.predict(trained.eval_dataset)
        weights = torch.cat([p.detach().flatten() for p in trained.model.parameters()])
        results[name] = {
            "processes": trained.accelerator.num_processes,
            "steps": steps(trained),
            "eval": evaluated,
            "weights": weights.tolist(),
            "rewards": np.stack(predicted.predictions).tolist(),
            "labels": None if predicted.label_ids is None else predicted.label_ids.tolist(),
        }
        kept.append(trained)
    if trained.is_world_process_zero():
        (folder / "results.json").write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # Torch's gloo can deadlock when DDP is torn down (a worker thread waits for the interpreter
    # lock that the joining thread holds; seen once with torch 2.13), so nothing is.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
