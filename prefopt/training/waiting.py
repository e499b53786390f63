"""Processes that wait for each other, however long it takes.

A collective has a time limit (10 minutes with NCCL, 30 with gloo), after which all processes are
ended. Here each asks the store through which the processes found each other, from time to time.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

# Seconds between two questions; the first come sooner.
_LONGEST_PAUSE_S = 0.5


def meet() -> None:
    """Return when every process has called this as often as this one."""
    store = _store()
    if store is None:
        return
    place = f"meet/{_visit(store, 'meet')}"
    store.add(place, 1)
    _wait(lambda: store.add(place, 0) >= dist.get_world_size())


@contextmanager
def first_of_node(is_first: bool) -> Iterator[None]:
    """Let the first process of each node do what is inside before its others, then all go on.

    What it has done, it has cached: the others find it. Every process must enter.
    """
    store = _store()
    if store is None:
        yield
        return
    node = f"{socket.gethostname()}/{os.environ.get('GROUP_RANK', '0')}"
    place = f"first/{node}/{_visit(store, 'first')}"
    if not is_first:
        _wait(lambda: store.add(place, 0) > 0)
    try:
        yield
    finally:  # whatever fails there fails in the others too, who say the same
        if is_first:
            store.add(place, 1)
    meet()


def _store() -> Any:
    """Return the store of the processes; None where there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return PrefixStore("prefopt", _get_default_store())


def _visit(store: Any, kind: str) -> int:
    """Return how often this process has come, this time included."""
    return int(store.add(f"{kind}/rank/{dist.get_rank()}", 1))


def _wait(is_done: Callable[[], bool]) -> None:
    pause = 0.005
    while not is_done():
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
