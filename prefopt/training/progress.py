"""What training has counted so far, kept in checkpoints: a resumed run logs what it would have."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

PROGRESS_FILE = "prefopt_progress.json"


class Progress(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Counts tokens, and carries on what was not logged yet when a checkpoint was written.

    Args:
        trainer: The trainer, whose sums of the loss are carried on.
        metrics: Of training, since they were last logged.
        processes: Those that share the run.

    Attributes:
        tokens: Trained on so far by this process.
        skipped: Steps that were left out so far (``non_finite_steps``).
        skipped_since_log: Those of them since the loss was last logged.
    """

    def __init__(self, trainer: Any, metrics: Any, processes: Any) -> None:
        self._trainer = trainer
        self._metrics = metrics
        self._processes = processes
        self._kept: dict[str, Any] = {}
        self._last_logged = 0
        self._knows_all = True
        self.tokens = self.skipped = self.skipped_since_log = 0

    def logged(self, loss: float) -> dict[str, float]:
        """Return what is logged of the steps since the last time; every process must call this.

        Args:
            loss: Its sum divided by all these steps, those that were left out too.
        """
        trainer = self._trainer
        seen = torch.tensor(self.tokens, device=trainer.args.device)
        logs = {"num_tokens": float(self._processes.sum(seen))}
        step = trainer.state.global_step
        if self.skipped_since_log:
            steps = step - self._last_logged
            taken = steps - self.skipped_since_log
            logs["loss"] = loss * steps / taken if taken else float("nan")
        if self.skipped:
            logs["skipped_steps"] = float(self.skipped)
        self._last_logged, self.skipped_since_log = step, 0
        return logs

    def summary(self) -> dict[str, float]:
        """Return the mean loss of all steps, also those before a checkpoint; {} if unknown."""
        trainer = self._trainer
        taken = trainer.state.global_step - self.skipped
        if not hasattr(trainer, "_total_loss_scalar") or not taken or not self._knows_all:
            return {}
        return {"train_loss": trainer._total_loss_scalar / taken}

    def save(self, folder: Path) -> None:
        """Write into a checkpoint what was counted; every process must call this."""
        trainer = self._trainer
        of_all = self._processes.all(
            {
                "tokens": self.tokens,
                "metrics": self._metrics.state_dict(),
                "loss": float(getattr(trainer, "_tr_loss", 0.0)),
                "total_loss": float(getattr(trainer, "_total_loss_scalar", 0.0)),
            }
        )
        kept = {
            "version": 1,
            "skipped_steps": self.skipped,
            "skipped_since_log": self.skipped_since_log,
            "last_logged": self._last_logged,
            "processes": of_all,
        }
        if trainer.args.should_save:
            (folder / PROGRESS_FILE).write_text(json.dumps(kept) + "\n", encoding="utf-8")

    def resume(self, folder: Path | None) -> None:
        """Go on from a checkpoint, if it says where; None to begin."""
        file = None if folder is None else folder / PROGRESS_FILE
        self._kept = json.loads(file.read_text()) if file is not None and file.is_file() else {}
        self.tokens = self._last_logged = 0
        self._knows_all = folder is None or bool(self._kept)
        self.skipped = int(self._kept.get("skipped_steps", 0))
        self.skipped_since_log = int(self._kept.get("skipped_since_log", 0))
        self._metrics.load_state_dict({})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add what the checkpoint counted to transformers' sums, which start at 0 just before."""
        of_all = self._kept.get("processes")
        if not of_all:
            self._last_logged = state.global_step
            return
        if len(of_all) == self._processes.count:
            mine = of_all[self._processes.rank]
        else:  # by another number of processes: all that was counted is the main one's
            mine = _together(of_all, self._processes.is_main)
        self.tokens = mine["tokens"]
        self._metrics.load_state_dict(mine["metrics"], args.device)
        trainer = self._trainer
        self._last_logged = self._kept["last_logged"]
        if hasattr(trainer, "_globalstep_last_logged"):
            trainer._tr_loss += mine["loss"]
            trainer._total_loss_scalar += mine["total_loss"]
            trainer._globalstep_last_logged = self._last_logged


def _together(of_all: list[dict[str, Any]], is_main: bool) -> dict[str, Any]:
    """Return what several processes counted as one of another number of them takes it on."""
    metrics: dict[str, list[float]] = {}
    for one in of_all:
        for name, pair in one["metrics"].items():
            total, count = metrics.get(name, (0.0, 0.0))
            metrics[name] = [total + pair[0], count + pair[1]] if is_main else [0.0, 0.0]
    return {
        "tokens": sum(one["tokens"] for one in of_all) if is_main else 0,
        "metrics": metrics,
        # Losses are averaged over processes.
        "loss": sum(one["loss"] for one in of_all) / len(of_all),
        "total_loss": of_all[0]["total_loss"],
    }
