"""Runs that are killed while they fill a store, or that fill it together."""

import os
import random
import signal
import time
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from prefopt.reference.fill import CompletionIndex
from prefopt.reference.store.logp_store import FILE_NAME
from tests.reference import fill_worker
from tests.reference.fill_worker import ROWS_PER_BATCH, dataset_of, open_store

ROWS = 160
KILLS = 20

# Processes forked by one that has imported torch and run nothing: a start takes no ten seconds.
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload([fill_worker.__name__])


def _fill(folder, delay_s, may_go_on, sender):
    wait = partial(time.sleep, delay_s) if may_go_on is None else may_go_on.wait
    fill_worker.fill(folder, ROWS, wait, lambda *what: sender.send(what))


class Filling:
    """A process that fills a store, and waits after each commit: a time, or for an event."""

    def __init__(self, folder, delay_s=0.0, may_go_on=None):
        self._receiver, sender = PROCESSES.Pipe(duplex=False)
        self.process = PROCESSES.Process(target=_fill, args=(folder, delay_s, may_go_on, sender))
        self.process.start()
        sender.close()

    def told(self):
        """Return the next thing it tells; None if it will tell nothing more."""
        try:
            return self._receiver.recv()
        except EOFError:
            return None

    def ended(self):
        """Return all that it still tells, when it has ended."""
        rest = list(iter(self.told, None))
        self.process.join()
        return rest


def fill(folder):
    """Fill a store; return how many completions were wanting."""
    filling = Filling(folder)
    *_, (last, computed) = filling.ended()
    assert last == "computed"
    assert filling.process.exitcode == 0
    return computed


def values_in(folder):
    """Return what a store knows of the rows, by key."""
    store, _ = open_store(folder)
    wanted = CompletionIndex.of(dataset_of(ROWS), with_kl=False)
    keys = wanted.keys_at(np.arange(len(wanted)))
    found = dict(zip(keys, store.look_up(keys), strict=True))
    assert store.database.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.database.close()
    return {key: value for key, value in found.items() if value is not None}


def same(found, wanted):
    assert found.keys() <= wanted.keys()
    for key, value in found.items():
        np.testing.assert_array_equal(value, wanted[key])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    fill(folder)
    return values_in(folder)


def test_a_process_that_dies_while_it_writes_loses_that_commit_only(tmp_path, undisturbed):
    """Forked here, to be quick; the next test kills real runs at moments that nobody chose."""
    store, _ = open_store(tmp_path)
    child = os.fork()
    if child == 0:
        entries = list(undisturbed.items())
        store.add(entries[:30])

        def endless():
            yield from entries[30:60]
            os.kill(os.getpid(), signal.SIGKILL)

        store.database.put(store._reference, store.fingerprint, store._origin_id, endless())
        os._exit(1)
    _, status = os.waitpid(child, 0)
    store.database.close()
    assert os.WTERMSIG(status) == signal.SIGKILL
    found = values_in(tmp_path)
    same(found, undisturbed)
    assert len(found) == 30
    assert fill(tmp_path) == len(undisturbed) - 30
    same(values_in(tmp_path), undisturbed)


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_at_most_the_batch_in_flight(tmp_path, undisturbed):
    moments = random.Random(0)
    folder = tmp_path / "store"
    before = 0
    for kill in range(KILLS):
        # There are 80 commits. A start gets through one or two, more on a busy machine.
        filling = Filling(folder, delay_s=0.005)
        assert filling.told() == ("ready", 0)
        told = [filling.told() for _ in range(moments.randrange(3))]
        time.sleep(moments.uniform(0, 0.012))  # into a forward pass, a commit or a pause
        filling.process.kill()
        told += filling.ended()
        assert {what for what, _ in told} <= {"kept"}, f"kill {kill} came too late"
        assert filling.process.exitcode == -signal.SIGKILL
        found = values_in(folder)
        same(found, undisturbed)
        # What was told of is there, and at most a batch more: the one that was to be told of next.
        kept = sum(count for _, count in told)
        assert before + kept <= len(found) <= before + kept + 2 * ROWS_PER_BATCH
        before = len(found)
    assert 0 < before < len(undisturbed)
    assert fill(folder) == len(undisturbed) - before
    assert values_in(folder).keys() == undisturbed.keys()
    same(values_in(folder), undisturbed)


@pytest.mark.slow
def test_two_processes_fill_one_store_at_once_and_agree(tmp_path, undisturbed):
    folder = tmp_path / "store"
    fillings = [Filling(folder, delay_s=0.002) for _ in range(2)]
    for filling in fillings:
        assert filling.ended()[-1][0] == "computed"
        assert filling.process.exitcode == 0
    found = values_in(folder)
    assert found.keys() == undisturbed.keys()
    same(found, undisturbed)
    assert [file.name for file in folder.iterdir()] == [FILE_NAME]


@pytest.mark.slow
def test_a_run_finds_what_another_adds_while_it_fills(tmp_path, undisturbed):
    """So two that work on the same rows do not do all of them twice."""
    folder = tmp_path / "store"
    may_go_on = PROCESSES.Event()
    slow = Filling(folder, may_go_on=may_go_on)
    assert [slow.told()[0] for _ in range(2)] == ["ready", "kept"]
    assert fill(folder) == len(undisturbed) - 2 * ROWS_PER_BATCH
    assert values_in(folder).keys() == undisturbed.keys()
    may_go_on.set()
    assert [what for what, _ in slow.ended()] == ["computed"]
