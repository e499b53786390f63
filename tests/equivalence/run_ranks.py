"""Train a tiny model and write what came out; started once per process by the tests beside it."""

import json
import os
import sys
from pathlib import Path

import torch

from tests.models import tiny_model, tiny_rows
from tests.training import steps, trainer


def main(
    folder: Path, loss: str, kind: str, batch_size: int, architecture: str, accumulated: int
) -> None:
    """Train three steps and write losses, gradient norms, metrics and weights."""
    trained = trainer(
        folder,
        tiny_rows(24, kind),
        model=tiny_model(architecture),
        loss_type=loss,
        eval_dataset=tiny_rows(7, kind, seed=1),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        ddp_find_unused_parameters=False,
        # Adam's first steps go as far for a gradient of rounding errors as for any other.
        optim="sgd",
    )
    trained.train()
    evaluated = trained.evaluate()
    if trained.is_world_process_zero():
        weights = torch.cat([p.detach().flatten() for p in trained.model.parameters()])
        result = {"steps": steps(trained), "eval": evaluated, "weights": weights.tolist()}
        Path(folder, "result.json").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # Torch's gloo can deadlock when DDP is torn down (a worker thread waits for the interpreter
    # lock that the joining thread holds; seen once with torch 2.13), so nothing is.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    folder, loss, kind, batch_size, architecture, accumulated = sys.argv[1:]
    main(Path(folder), loss, kind, int(batch_size), architecture, int(accumulated))
