"""Where runs are computed: processes of this machine, or a cluster through submitit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import psutil
import torch

from prefopt.compare.tasks import Task, TaskState, execute

__all__ = ["Executor", "LocalProcesses", "Submitit", "make_executor", "model_bytes"]

POLL_S = 0.5
# Resident memory of a process that has loaded torch and transformers.
LIBRARIES_BYTES = 1.2 * 2**30
# Weights, gradients and two moments of AdamW, and as much again for activations; all in float32,
# while the file may hold halves.
BYTES_OF_WEIGHTS = 8.0


class Executor(Protocol):
    """Runs tasks."""

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """Run tasks to their end; what became of them is in their folders.

        Args:
            tasks: Those to run.
            watch: Called every half second or so.

        Raises:
            KeyboardInterrupt: If it was asked to stop; the tasks can then be run again.
        """


@dataclass
class LocalProcesses:
    """Runs so many tasks at once on this machine, each command in a process of its own.

    Attributes:
        jobs: How many at once.
        threads: Threads of each; None leaves that to torch.
        devices: Numbers of the GPUs, which the tasks take in turn.
    """

    jobs: int
    threads: int | None = None
    devices: Sequence[int] = ()
    _running: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    _stops: bool = False

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """See ``Executor``."""
        self._stops = False
        slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.jobs):
            slots.put(slot)
        with ThreadPoolExecutor(self.jobs, "prefopt-compare") as pool, _sigterm_interrupts():
            futures = {pool.submit(self._run_one, task, slots) for task in tasks}
            try:
                _wait(futures, watch)
            except BaseException:
                self._stop(futures)
                raise

    def _run_one(self, task: Task, slots: "SimpleQueue[int]") -> TaskState:
        slot = slots.get()
        try:
            return execute(task, self._environment(slot), self._running.add, lambda: self._stops)
        finally:
            slots.put(slot)

    def _environment(self, slot: int) -> dict[str, str]:
        own = {"TOKENIZERS_PARALLELISM": "false"}
        if self.threads is not None:
            own["OMP_NUM_THREADS"] = own["MKL_NUM_THREADS"] = str(self.threads)
        if self.devices:
            own["CUDA_VISIBLE_DEVICES"] = str(self.devices[slot % len(self.devices)])
        return own

    def _stop(self, futures: "set[Future[TaskState]]") -> None:
        """Ask what runs to save a checkpoint and leave; asked again, kill it."""
        self._stops = True
        for future in futures:
            future.cancel()
        self._send(signal.SIGINT)
        try:
            wait(futures)
        except KeyboardInterrupt:
            self._send(signal.SIGKILL)
            raise

    def _send(self, number: int) -> None:
        for process in [*self._running]:
            if process.poll() is None:
                process.send_signal(number)


@dataclass(frozen=True)
class Submitit:
    """Runs tasks as jobs of a cluster, or of this machine, through submitit.

    Attributes:
        folder: Where submitit keeps its own files; on a cluster, seen by all nodes.
        cluster: ``slurm``, ``local`` or ``debug`` (in this process).
        jobs: How many at once; None for as many as the cluster lets.
        parameters: Of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min``,
            ``gpus_per_node``, ``cpus_per_task``, ``mem_gb`` and ``slurm_partition``.
    """

    folder: Path
    cluster: str = "slurm"
    jobs: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """See ``Executor``."""
        executor = self._executor()
        waiting = list(tasks)
        running: list[Any] = []
        try:
            while waiting or running:
                running = [job for job in running if not job.done()]
                while waiting and len(running) < (self.jobs or len(tasks)):
                    running.append(executor.submit(execute, waiting.pop(0)))
                if self.cluster == "debug":
                    running.pop().wait()  # computed when it is waited for
                watch()
                time.sleep(0 if self.cluster == "debug" else POLL_S)
        except BaseException:
            for job in running:
                job.cancel()
            raise

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise ImportError(
                "clusters need submitit: pip install 'prefopt[compare]'", name="submitit"
            ) from error
        executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.cluster)
        # A job is ended at its time limit, and goes on from its checkpoint when started again.
        executor.update_parameters(**{"name": "prefopt", "timeout_min": 24 * 60, **self.parameters})
        return executor


def make_executor(
    name: str,
    folder: Path,
    *,
    jobs: int | None = None,
    needed_bytes: float = 0.0,
    use_gpus: bool = True,
    parameters: Mapping[str, Any] | None = None,
) -> Executor:
    """Return an executor by name.

    Args:
        name: ``processes``; or one of submitit's: ``slurm``, ``local``, ``debug``.
        folder: Where submitit keeps its files.
        jobs: Runs at once; None for as many as fit.
        needed_bytes: Memory that a run needs, about.
        use_gpus: Whether runs use the GPUs that there are.
        parameters: Of submitit's executor.

    Raises:
        ValueError: If there is no such executor, or a number is wrong.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if name in ("slurm", "local", "debug"):
        return Submitit(folder, name, jobs, dict(parameters or {}))
    if name != "processes":
        raise ValueError(f"no executor {name!r}; there are: processes, slurm, local, debug")
    if parameters:
        raise ValueError("parameters of submitit go with the executors slurm, local and debug")
    devices = range(torch.cuda.device_count()) if use_gpus else range(0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if devices:
        return LocalProcesses(jobs or len(devices), None, devices)
    fits = int(psutil.virtual_memory().available / max(needed_bytes, LIBRARIES_BYTES))
    jobs = jobs or max(1, min(cores, fits))
    return LocalProcesses(jobs, max(1, cores // jobs))


def model_bytes(model: str) -> float:
    """Return about how much memory a run with a model needs, by the size of its files."""
    folder = Path(model)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else []
    return LIBRARIES_BYTES + BYTES_OF_WEIGHTS * sum(file.stat().st_size for file in files)


def _wait(futures: "set[Future[TaskState]]", watch: Callable[[], None]) -> None:
    """Wait for all, and raise what one of them raises: a fault of this program."""
    left = futures
    while left:
        ended, left = wait(left, POLL_S, FIRST_COMPLETED)
        for future in ended:
            future.result()
        watch()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C inside, in the main thread."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # in another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
