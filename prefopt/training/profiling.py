"""A trace of a few optimiser steps, by torch's profiler, on request."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from prefopt.reference.processes import Processes

TRACE_FILE = "profile_process{rank}.json"
# Steps that go before: the first ones make optimiser states and caches.
_WARM_UP = 2


@contextmanager
def untold() -> Iterator[None]:
    """Keep torch's profiler from telling people that it starts or stops, past Python's streams."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class ProfileSteps(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Records operations of some steps, with what they take on CPU and GPU, and writes them down.

    The trace is a file for https://ui.perfetto.dev or chrome://tracing, one of each process. It
    begins after two steps, or earlier in a run that is shorter.

    Args:
        steps: How many to record.
        processes: Those that share the run.
        say: Prints a line for people.
    """

    def __init__(self, steps: int, processes: Processes, say: Callable[[str], None]) -> None:
        self._steps = steps
        self._processes = processes
        self._say = say
        self._profile: Any = None
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the steps."""
        to_come = state.max_steps - state.global_step
        self._profile = None
        self._first = state.global_step + max(0, min(_WARM_UP, to_come - self._steps))
        self._begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or end, between two steps."""
        self._begin(state.global_step)
        if state.global_step >= self._first + self._steps:
            self._write(args.output_dir, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what there is of a run that ends earlier."""
        self._write(args.output_dir, state.global_step)

    def _begin(self, step: int) -> None:
        if step == self._first and self._profile is None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            with untold():
                self._profile.start()

    def _write(self, folder: str, step: int) -> None:
        if self._profile is None or step < self._first:
            return
        with untold():
            self._profile.stop()
        file = Path(folder) / TRACE_FILE.format(rank=self._processes.rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(file))
        self._profile, self._first = None, -1
        self._say(f"prefopt: the trace of {self._steps} steps is in {file}, for ui.perfetto.dev")
