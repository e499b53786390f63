"""A progress bar on stderr, for people who watch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    title: str, total: int, shown: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """Show how much of something is done, until the context ends.

    Args:
        title: What is counted.
        total: How many there are.
        shown: Whether to show it; None for where stderr is a terminal.

    Yields:
        What is called with the number that has been done since the last time.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    shown = sys.stderr.isatty() if shown is None else shown
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
