"""A few steps of a run, measured: how long they take, and how much memory."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from prefopt.config import PreferenceConfig
from prefopt.data.prepared import Ints
from prefopt.training.needs import Line
from prefopt.training.profiling import untold
from prefopt.training.throughput import PHASES
from prefopt.training.trainer import PreferenceTrainer

# Shares of the batches, by tokens, below which those lie that are tried beside the largest.
_TYPICAL = (0.5, 0.2, 0.8, 0.35, 0.65)
_LEAST_STEPS, _MOST_STEPS = 6, 40

Batch = list[int]  # numbers of its rows


class Trials:
    """Steps on some batches of a run, each batch a step of its own.

    Args:
        trainer: Of the run, with ``trial_arguments``.
        rows: All rows.
        sizes: Tokens of each; (n,).
        batches: What is tried: the largest first, then typical ones.
        most_tokens: Tokens of one pass, to which batches are cut up; None for no such limit.

    Attributes:
        steps: How many steps were timed.
        forward: Seconds of a token in a forward pass.
    """

    def __init__(
        self,
        trainer: PreferenceTrainer,
        rows: Dataset,
        sizes: Ints,
        batches: Sequence[Batch],
        most_tokens: int | None = None,
    ) -> None:
        self._trainer, self._rows = trainer, rows
        self._batches = list(batches)
        self._tokens = [float(sizes[batch].sum()) for batch in batches]
        self._at_once = [tokens_at_once(batch, sizes, most_tokens) for batch in batches]
        self.steps = 0
        self.forward = 0.0

    def _train(self, order: Sequence[int], callback: TrainerCallback) -> list[dict[str, float]]:
        """Take a step on each of some batches, by their numbers; return what was logged of each."""
        trainer = self._trainer
        trainer.train_dataset = self._rows.select([r for n in order for r in self._batches[n]])
        trainer.args.max_steps = len(order)
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.add_callback(callback)
        trainer.train()
        trainer.remove_callback(callback)
        return [entry for entry in trainer.state.log_history if "timing_s/step" in entry]

    def timed(self, most_seconds: float) -> tuple[Line, float, float]:
        """Return the seconds of a pass by its tokens, of the optimiser, and of what comes once."""
        others = list(range(1, len(self._batches))) or [0]
        order = [0, *(others * _MOST_STEPS)]
        order[_LEAST_STEPS - 1 : _LEAST_STEPS - 1] = [0]  # once more, warm
        order = order[:_MOST_STEPS]
        begun = perf_counter()
        entries = self._train(order, _Stop(most_seconds))
        whole = perf_counter() - begun
        once = max(whole - sum(entry["timing_s/step"] for entry in entries), 0.0)
        self.steps = len(entries) - 1
        warm = list(zip(order, entries, strict=False))[1:]
        passed = [name for name in PHASES if name != "optimizer"]
        points = [
            (self._tokens[n], sum(entry[f"timing_s/{name}"] for name in passed))
            for n, entry in warm
        ]
        seconds = [entry["timing_s/forward"] / self._tokens[n] for n, entry in warm]
        self.forward = float(np.median(seconds))
        optimizer = float(np.median([entry["timing_s/optimizer"] for _, entry in warm]))
        return Line.through(points), optimizer, once

    def peaks(self) -> Line:
        """Return the most that a step allocates beside weights and optimiser, by its tokens."""
        watch = _Peaks(self._trainer.args.device)
        order = [0] if len(self._batches) == 1 else [0, 1]
        self._train([*order[-1:], *order], watch)  # the first makes what the optimiser keeps
        return Line.through(
            [(self._at_once[n], peak) for n, peak in zip(order, watch.peaks[1:], strict=True)]
        )


class _Stop(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Stops when the least number of steps is done and time is up."""

    def __init__(self, most_seconds: float) -> None:
        self._until = perf_counter() + most_seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        if state.global_step >= _LEAST_STEPS and perf_counter() > self._until:
            control.should_training_stop = True


class _Peaks(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Sees how much each step allocates at most, beside what there is before it; bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profile: Any = None
        self._before = 0
        self.peaks: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        with untold():
            self._profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the most."""
        if self._device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self._device)
            self.peaks.append(float(most - self._before))
            return
        with untold():
            self._profile.stop()
        with TemporaryDirectory(prefix="prefopt-plan-") as folder:
            trace = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(trace))
            self.peaks.append(most_allocated(json.loads(trace.read_text())["traceEvents"]))


def most_allocated(events: Sequence[dict[str, Any]]) -> float:
    """Return the largest sum of what a trace of torch's profiler allocates and frees; bytes.

    Examples:
        >>> allocated = ((1, 5), (2, 7), (4, -5), (6, 1))
        >>> most_allocated(
        ...     [{"name": "[memory]", "ts": ts, "args": {"Bytes": n}} for ts, n in allocated]
        ... )
        12.0
    """
    changes = sorted(
        (float(event["ts"]), int(event["args"]["Bytes"]))
        for event in events
        if event.get("name") == "[memory]"
    )
    return float(max(np.cumsum([size for _, size in changes]), default=0))


def trial_arguments(args: PreferenceConfig, folder: Path) -> PreferenceConfig:
    """Return the arguments of a run for steps that are measured: nothing is told or kept.

    Args:
        args: Those of the run.
        folder: Where all is written.
    """
    trial: PreferenceConfig = copy.copy(args)
    trial.output_dir = str(folder / "run")
    trial.reference_cache_dir = str(folder / "store")
    trial.report_to, trial.push_to_hub, trial.disable_tqdm = [], False, True
    trial.gradient_accumulation_steps = 1
    trial.train_sampling_strategy = "sequential"
    trial.dataloader_drop_last = False
    trial.logging_strategy = type(args.logging_strategy)("steps")
    trial.logging_steps, trial.log_throughput, trial.profile_steps = 1, True, 0
    trial.logging_first_step = False
    trial.eval_strategy = type(args.eval_strategy)("no")
    trial.save_strategy = type(args.save_strategy)("no")
    trial.load_best_model_at_end, trial.diagnostics = False, False
    trial.auto_find_batch_size, trial.check_first_batch = False, False
    # The model is given, loaded and quantised as these say.
    trial.model_init_kwargs = None
    trial.trust_remote_code = False
    return trial


def tokens_at_once(batch: Batch, sizes: Ints, most_tokens: int | None) -> int:
    """Return the tokens of a batch that one pass holds: all, or as many as it may, but a row.

    Args:
        batch: Its rows.
        sizes: Tokens of each row; (n,).
        most_tokens: Tokens to which batches are cut up; None where they are not.
    """
    tokens = int(sizes[batch].sum())
    return tokens if most_tokens is None else min(tokens, max(most_tokens, int(sizes[batch].max())))


def tried_batches(batches: Sequence[Batch], sizes: Ints) -> list[Batch]:
    """Return the largest batch, and some of typical sizes; all have as many rows as the first.

    Args:
        batches: Of an epoch.
        sizes: Tokens of each row; (n,).
    """
    full = [batch for batch in batches if len(batch) == len(batches[0])]
    tokens = np.array([int(sizes[batch].sum()) for batch in full])
    order = np.argsort(tokens, kind="stable")
    places = [order[-1], *(order[int(share * (len(order) - 1))] for share in _TYPICAL)]
    return [full[place] for place in dict.fromkeys(int(place) for place in places)]
