"""How fast training is: tokens per second, where the time of a step goes, memory, useful work.

Time is counted from the moment a step asks for its rows to the end of the optimiser's step.
Evaluations, logging and saving in between are no part of it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback

from prefopt.batch import Batch
from prefopt.engine.flops import (
    Weights,
    continued_work_of,
    matmul_rate,
    padded_tokens,
    peak_rate,
    work_of,
)
from prefopt.reference.processes import Processes

PHASES = ("data", "reference", "forward", "backward", "optimizer")
GIB = 2**30
# What is logged of a machine: by a name's beginning, the whole of it, its end.
_PHASE = "timing_s/"
_OF_MACHINE = ("mfu", "matmul_share", "peak_memory_gib")
_CLOCKS = ("runtime", "per_second", "preparation_time")


def is_of_machine(name: str) -> bool:
    """Whether a logged number depends on how fast the machine was, or on its memory.

    Two runs that are the same log another one each.

    Args:
        name: That it is logged by.
    """
    return name.startswith(_PHASE) or name in _OF_MACHINE or name.endswith(_CLOCKS)


class StepClock:
    """Adds up how long the parts of a step take; every moment of a step belongs to one part.

    On a GPU the times are those of its stream, by events between the kernels, so that nothing waits
    for them before ``seconds`` is called.

    Args:
        now: Returns a mark in time.
        between: Returns the seconds between two marks.
    """

    def __init__(
        self,
        now: Callable[[], Any] = perf_counter,
        between: Callable[[Any, Any], float] = lambda first, last: float(last - first),
    ) -> None:
        self._now, self._between = now, between
        self._phase: str | None = None
        self._since: Any = None
        self._spans: list[tuple[str, Any, Any]] = []

    @classmethod
    def of(cls, device: torch.device) -> "StepClock":
        """Return the clock of a device."""
        return cls(_recorded_event, _between_events) if device.type == "cuda" else cls()

    def start(self, phase: str) -> None:
        """Begin a part of a step, and end the one before, if there was one."""
        mark = self._now()
        if self._phase is not None:
            self._spans.append((self._phase, self._since, mark))
        self._phase, self._since = phase, mark

    def turn_to(self, phase: str) -> None:
        """Begin another part; nothing where no step is timed."""
        if self._phase is not None:
            self.start(phase)

    def stop(self) -> None:
        """End the step."""
        self.turn_to("")
        self._phase = None

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Time a part that interrupts another one."""
        before = self._phase
        self.turn_to(phase)
        try:
            yield
        finally:
            if before is not None:
                self.turn_to(before)

    def seconds(self) -> dict[str, float]:
        """Return how long each part took since this was last asked for."""
        found = dict.fromkeys(PHASES, 0.0)
        for phase, first, last in self._spans:
            found[phase] += self._between(first, last)
        self._spans = []
        return found


@dataclass
class _Counts:
    """What was computed since the last log.

    Attributes:
        steps: Optimiser steps.
        tokens: Laid out, each shared prefix once.
        padded: Of plain rows, with their padding.
        flops: Useful floating-point operations.
    """

    steps: int = 0
    tokens: int = 0
    padded: int = 0
    flops: int = 0


class Throughput(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Counts what training computes, and says how fast.

    Args:
        trainer: The trainer: its model, arguments and device.
        processes: Those that share the run.

    Attributes:
        clock: Times the parts of steps.
    """

    def __init__(self, trainer: Any, processes: Processes) -> None:
        self._trainer = trainer
        self._processes = processes
        self._weights: Weights | None = None
        self._rate: float | None = None
        self.clock = StepClock.of(trainer.args.device)
        self._counts = _Counts()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the model as it is trained, and at the machine."""
        self._weights = Weights.of(self._trainer.model)
        self._rate = _rate_of(args.device, _dtype_of(self._trainer))
        self.clock.stop()
        self.clock.seconds()
        self._counts = _Counts()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step has ended."""
        self.clock.stop()
        self._counts.steps += 1

    def add(self, batch: Batch) -> None:
        """Count a batch that is trained on."""
        if self._weights is None:
            return
        layout, examples = batch.texts.tokens, batch.texts.examples
        work, counts = work_of(layout, examples), self._counts
        counts.tokens += work.tokens
        counts.padded += padded_tokens(examples)
        scored = continued_work_of(layout)
        if scored.tokens == 0 and batch.mismatched is not None:
            scored = work_of(batch.mismatched.tokens, batch.mismatched.examples)
        counts.flops += self._weights.training(work) + self._weights.scoring(scored)

    def logged(self) -> dict[str, float]:
        """Return what is logged of the steps since the last time; every process must call this."""
        seconds, counts = self.clock.seconds(), self._counts
        self._counts = _Counts()
        mine = (counts, seconds, self._rate, peak_memory(self._trainer.args.device))
        of_all = self._processes.all(mine)
        steps = counts.steps
        longest = max(sum(its.values()) for _, its, _, _ in of_all)
        if not steps or not longest:
            return {}
        means = {name: sum(its[name] for _, its, _, _ in of_all) / len(of_all) for name in PHASES}
        logs = {
            "tokens_per_second": sum(its.tokens for its, *_ in of_all) / longest,
            "padded_tokens_per_second": sum(its.padded for its, *_ in of_all) / longest,
            "peak_memory_gib": max(memory for *_, memory in of_all) / GIB,
            f"{_PHASE}step": longest / steps,
            **{f"{_PHASE}{name}": mean / steps for name, mean in means.items()},
        }
        rates = [rate for _, _, rate, _ in of_all]
        if None not in rates:
            on_cpu = self._trainer.args.device.type == "cpu"
            useful = sum(its.flops for its, *_ in of_all) / longest
            logs["matmul_share" if on_cpu else "mfu"] = useful / sum(rates)
        return {name: float(f"{value:.4g}") for name, value in logs.items() if value or "/" in name}


def peak_memory(device: torch.device) -> int:
    """Return the most memory in use until now: of a GPU what was allocated, else resident; bytes.

    Resident memory is that of the process since it began, loading included; 0 where the system does
    not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _rate_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations per second that a device can compute; None where nobody knows."""
    if device.type == "cuda":
        return peak_rate(torch.cuda.get_device_name(device))
    return matmul_rate(dtype, torch.get_num_threads()) if device.type == "cpu" else None


def _dtype_of(trainer: Any) -> torch.dtype:
    """Return the dtype of the products of a run."""
    with trainer.accelerator.autocast():
        if torch.is_autocast_enabled(trainer.args.device.type):
            return torch.get_autocast_dtype(trainer.args.device.type)
    dtype = getattr(trainer.model, "dtype", torch.float32)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _recorded_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between_events(first: Any, last: Any) -> float:
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
