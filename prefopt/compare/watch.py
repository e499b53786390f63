"""The matrix while it runs: a table in a terminal, a line for each change elsewhere."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from prefopt.compare.tasks import Task, TaskState, progress_of, state_of

__all__ = ["Watch"]

_COLOURS = {"done": "green", "failed": "red", "running": "bold", "waiting": "dim"}


class Watch:
    """Shows how far each run is; a context manager.

    Args:
        tasks: The runs.
        steps: Optimiser steps of each, by name.
        console: Where to; a terminal gets a table that is redrawn.
        title: Above the table.
    """

    def __init__(
        self, tasks: Sequence[Task], steps: Mapping[str, int], console: Console, title: str = "Runs"
    ) -> None:
        self._tasks, self._steps = tasks, steps
        self._console, self._title = console, title
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._seen: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> "Watch":
        if self._live is not None:
            self._live.__enter__()
        for task in self._tasks:  # what is done already is told once, not run by run
            state = state_of(task)
            if state.state == "done":
                self._seen[task.name] = (state.state, state.stage)
        if self._live is None and self._seen:
            self._console.print(f"{len(self._seen)} of {len(self._tasks)} are done already")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.update()
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def update(self) -> None:
        """Show how things are now."""
        states = {task.name: state_of(task) for task in self._tasks}
        if self._live is not None:
            self._live.update(self._table(states), refresh=True)
            return
        for task in self._tasks:
            state = states[task.name]
            now = (state.state, state.stage)
            if now != self._seen.get(task.name, ("waiting", "")):
                self._seen[task.name] = now
                self._console.print(_line(task, state), markup=False, soft_wrap=True)

    def _table(self, states: Mapping[str, TaskState]) -> Table:
        done = sum(state.state == "done" for state in states.values())
        table = Table(title=f"{self._title}: {done} of {len(states)} done", title_justify="left")
        for heading in ("run", "state", "steps", "seconds"):
            table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
        shown = self._shown(states)
        for task in shown:
            table.add_row(*self._cells(task, states[task.name]))
        if len(shown) < len(self._tasks):
            table.add_row(f"… and {len(self._tasks) - len(shown)} more", "", "", "")
        return table

    def _shown(self, states: Mapping[str, TaskState]) -> list[Task]:
        """Return the runs that fit on the screen, those that run or failed before the others."""
        order = ["failed", "running", "waiting", "done"]
        room = max(4, self._console.height - 6)
        if len(self._tasks) <= room:
            return list(self._tasks)
        ranked = sorted(self._tasks, key=lambda task: order.index(states[task.name].state))
        return ranked[: room - 1]

    def _cells(self, task: Task, state: TaskState) -> list[Any]:
        colour = _COLOURS[state.state]
        text = state.error or (state.stage if state.state == "running" else _said(task, state))
        steps = self._steps.get(task.name, 0)
        done = progress_of(task, steps) if state.state == "running" else None
        of_steps = f"{done}/{steps}" if done is not None else str(steps or "")
        seconds = sum(state.seconds.values())
        return [task.name, f"[{colour}]{text}[/]", of_steps, f"{seconds:.0f}" if seconds else ""]


def _line(task: Task, state: TaskState) -> str:
    if state.state == "failed":
        return f"{task.name}: failed in {state.stage}: {state.error}"
    if state.state == "running":
        return f"{task.name}: {state.stage}"
    seconds = sum(state.seconds.values())
    return f"{task.name}: {_said(task, state)}" + (f" after {seconds:.0f} s" if seconds else "")


def _said(task: Task, state: TaskState) -> str:
    """Return the state of a run, or what of it is done while it waits for the rest."""
    parts = [stage.name for stage in task.stages if state.has(stage)]
    return f"{', '.join(parts)} done" if parts and state.state == "waiting" else state.state
