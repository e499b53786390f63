"""One run: commands in a folder, one after the other, that can be ended and started again.

The state is a file in the folder, replaced whole, so whoever looks sees a true one. A lock that the
commands inherit says whether one of them still runs, also after what started it was killed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from prefopt.training.checkpoints import checkpoint_folder

__all__ = ["Stage", "Task", "TaskState", "digest_of", "execute", "progress_of", "read_state"]

LOG_FILE = "log.txt"
STATE_FILE = "state.json"
PYTHON = (sys.executable, "-m")  # what starts a command
_POLL_S = 0.2
_STEPS = re.compile(rb"(\d+)/(\d+) \[")
# What a process says of itself when it is asked to leave.
_LEFT = (130, 143, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Stage:
    """A command of a run.

    Attributes:
        name: What it does: ``train`` or ``evaluation``.
        command: Words after ``python -m``, such as ``prefopt train --config run.yaml``.
        digest: Of what decides its result; done once for each.
        output: Folder that it writes, beside ``state.json``.
        resumes: Whether it goes on from checkpoints in that folder.
        keeps_checkpoints: Whether these stay when it is done.
    """

    name: str
    command: tuple[str, ...]
    digest: str
    output: str
    resumes: bool = False
    keeps_checkpoints: bool = True


@dataclass(frozen=True)
class Task:
    """A run: a folder and what is done in it.

    Attributes:
        name: That of its folder.
        folder: The folder.
        stages: Its commands, in order.
        files: Texts that the commands read, by name in the folder.
    """

    name: str
    folder: Path
    stages: tuple[Stage, ...]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskState:
    """How far a run is.

    Attributes:
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        stage: What runs, or failed.
        done: Digest of each stage that is done, by its name.
        seconds: What each of them took, by its name.
        error: Why it failed: the last line of what was printed.
    """

    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    stage: str = ""
    done: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    def has(self, stage: Stage) -> bool:
        """Whether a stage is done."""
        return self.done.get(stage.name) == stage.digest

    def of(self, task: Task) -> "TaskState":
        """Return the state of a task, whose stages may be others than were run once."""
        finished = all(self.has(stage) for stage in task.stages)
        if finished:
            return TaskState("done", "", self.done, self.seconds)
        return TaskState("waiting", "", self.done, self.seconds) if self.state == "done" else self


Start = Callable[["subprocess.Popen[bytes]"], None]


def digest_of(*facts: Any) -> str:
    """Return a short digest of values that JSON can hold; equal for equal values.

    >>> digest_of({"beta": 0.1, "loss_type": "dpo"}) == digest_of({"loss_type": "dpo", "beta": 0.1})
    True
    """
    text = json.dumps(facts, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=5).hexdigest()


def read_state(folder: Path) -> TaskState:
    """Return the state that a folder holds; waiting if it holds none."""
    try:
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TaskState()
    return TaskState(**values)


def state_of(task: Task) -> TaskState:
    """Return how far a task is."""
    return read_state(task.folder).of(task)


def retry(task: Task) -> None:
    """Let a task that failed, or whose process was killed, wait again."""
    state = state_of(task)
    if state.state in ("failed", "running"):
        _write(task, TaskState("waiting", "", state.done, state.seconds))


def progress_of(task: Task, steps: int) -> int | None:
    """Return how many of so many steps are done, as training last printed it; None if unknown."""
    try:
        with (task.folder / LOG_FILE).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 4096))
            found = _STEPS.findall(log.read())
    except OSError:
        return None
    done = [int(at) for at, of in found if int(of) == steps]
    return done[-1] if done else None


def execute(
    task: Task,
    environment: Mapping[str, str] | None = None,
    on_start: Start | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> TaskState:
    """Run what is not done of a task, and return its state; what fails is told there.

    Args:
        task: The task.
        environment: Variables for its commands, beside those of this process.
        on_start: Called with each process that is started.
        stopping: Whether the commands were asked to leave.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    with _locked(task.folder / ".lock", stopping) as lock:
        state = state_of(task)
        if state.state == "done":
            return state
        for name, text in task.files.items():
            (task.folder / name).write_text(text, encoding="utf-8")
        for stage in task.stages:
            if state.has(stage):
                continue
            if stopping():
                return TaskState("waiting", "", state.done, state.seconds)
            state = _write(task, TaskState("running", stage.name, state.done, state.seconds))
            begin = time.perf_counter()
            process = _start(task, stage, environment or {}, lock)
            if on_start is not None:
                on_start(process)
            code = process.wait()
            if code in _LEFT and stopping():
                return _write(task, TaskState("waiting", "", state.done, state.seconds))
            if code:
                return _write(task, _failed(task, state, code))
            state = _with_done(state, stage, time.perf_counter() - begin)
            if not stage.keeps_checkpoints:
                _remove_checkpoints(task.folder / stage.output)
        return _write(task, state.of(task))


def _with_done(state: TaskState, stage: Stage, seconds: float) -> TaskState:
    return TaskState(
        "running",
        stage.name,
        {**state.done, stage.name: stage.digest},
        {**state.seconds, stage.name: round(seconds, 2)},
    )


def _failed(task: Task, state: TaskState, code: int) -> TaskState:
    return TaskState("failed", state.stage, state.done, state.seconds, last_line(task.folder, code))


def last_line(folder: Path, code: int) -> str:
    """Return why a command failed: its error, else the last line that it printed."""
    text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    errors = [line for line in lines[-20:] if line.startswith("prefopt: error")]
    last = (errors or lines or [""])[-1]
    if code < 0:
        last = f"ended by {signal.Signals(-code).name}, perhaps for want of memory; {last}"
    return last or f"exit code {code}"


def _start(
    task: Task, stage: Stage, environment: Mapping[str, str], lock: int
) -> "subprocess.Popen[bytes]":
    """Start a command that inherits the lock."""
    command = [*PYTHON, *stage.command]
    if stage.resumes and _has_checkpoint(task.folder / stage.output):
        command += ["--resume_from_checkpoint", "true"]
    with (task.folder / LOG_FILE).open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=(lock,) if lock >= 0 else (),
        )


def _has_checkpoint(folder: Path) -> bool:
    try:
        return checkpoint_folder(True, str(folder)) is not None
    except ValueError:
        return False


def _remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def _write(task: Task, state: TaskState) -> TaskState:
    temporary = task.folder / f"{STATE_FILE}.part"
    temporary.write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
    temporary.replace(task.folder / STATE_FILE)
    return state


@contextmanager
def _locked(path: Path, stopping: Callable[[], bool]) -> Iterator[int]:
    """Hold a file's lock, once nobody else does; yield its descriptor, -1 where there are none."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is known of who else is at work
        yield -1
        return
    with path.open("w") as file:
        while not stopping():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # a command of a comparison that was killed is still at work
                time.sleep(_POLL_S)
        yield file.fileno()
