"""Training that is killed at moments that nobody chose ends as if nobody had killed it."""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from functools import cache
from multiprocessing import get_context

import pytest

from prefopt.training.checkpoints import checkpoint_folder
from tests.launches.engines import ENGINES
from tests.training import kill_worker
from tests.training.kill_worker import CASES

KILLS = 5  # of each case: 20 of one process
KILLS_OF_TWO = 2  # of each case with two processes: 6
SEED = 13
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")

# Processes forked by one that has imported everything and run nothing.
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload([kill_worker.__name__])


def _train(folder, name, resume, limit, delay_s, environment, sender, spoil):
    os.setsid()
    try:
        arguments = (folder, name, resume, limit, delay_s, environment)
        kill_worker.train(*arguments, lambda *what: sender.send(what), spoil)
    except BaseException:
        traceback.print_exc()  # before the exit below, which would take it along
        raise
    finally:
        if environment:  # torch's gloo can deadlock when it is torn down
            time.sleep(0.5)
            os._exit(0)


class Training:
    """A run of one process or of several, which can be killed."""

    def __init__(
        self, folder, name, resume, processes=1, limit=2, delay_s=0.0, engine=None, spoil=False
    ):
        self._processes, self._receivers = [], []
        environments = [{}] if processes == 1 else list(_environments(processes, engine))
        for environment in environments:
            receiver, sender = PROCESSES.Pipe(duplex=False)
            arguments = (folder, name, resume, limit, delay_s, environment, sender, spoil)
            self._processes.append(PROCESSES.Process(target=_train, args=arguments))
            self._processes[-1].start()
            sender.close()
            self._receivers.append(receiver)

    def told(self, rank=0):
        """Return the next thing a process tells; None if it will tell nothing more."""
        try:
            return self._receivers[rank].recv()
        except (EOFError, ConnectionResetError):
            return None

    def send(self, rank, name):
        """Send a signal to one of the processes."""
        os.kill(self._processes[rank].pid, getattr(signal, name))

    def kill(self):
        """Kill all processes at once, as `kill -9` and a machine that loses power do."""
        for process in self._processes:
            os.kill(process.pid, signal.SIGKILL)

    def ended(self, rank=0):
        """Return all that a process still tells, when all have ended."""
        rest = list(iter(lambda: self.told(rank), None))
        for process in self._processes:
            process.join(60)
            assert process.exitcode is not None
        return rest


def _environments(processes, engine):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_engine = {} if engine is None else ENGINES[engine].variables()
    names = ("ACCELERATE", "FSDP")
    of_engine = {key: value for key, value in of_engine.items() if key.startswith(names)}
    for rank in range(processes):
        yield of_engine | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }


def has_checkpoint(folder):
    try:
        return checkpoint_folder(True, str(folder)) is not None
    except ValueError:  # it was killed before the first was whole
        return False


def weights_of(checkpoint):
    return next(
        (checkpoint / name).read_bytes() for name in WEIGHTS if (checkpoint / name).exists()
    )


def killed(folder, name, moments, processes=1, engine=None):
    """Start or go on, and kill at a random moment; return whether that hit a checkpoint."""
    delay_s = 0.004 if processes == 1 else 0.02  # so that about half of the time is saving
    run = Training(folder, name, has_checkpoint(folder), processes, delay_s=delay_s, engine=engine)
    told = [run.told()]
    assert told[0] is not None
    assert told[0][0] == "begun"
    for _ in range(moments.randrange(1, 8)):
        told.append(run.told())
    time.sleep(moments.uniform(0, 0.1))
    run.kill()
    told += run.ended()
    assert None not in told
    assert "done" not in [what for what, _ in told], "the kill came too late"
    return told[-1][0] == "saving"


def finished(folder, name, resume, processes=1, limit=2, engine=None):
    run = Training(folder, name, resume, processes, limit, engine=engine)
    *_, (last, result) = run.ended()
    assert last == "done"
    digest, log, world, sharded = result
    assert world == processes
    assert sharded == (engine == "fsdp2")
    return digest, log


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what a case ends with that nobody disturbs, and its folder."""

    @cache
    def run(name, processes=1, engine=None):
        folder = tmp_path_factory.mktemp("whole")
        return finished(folder, name, False, processes, limit=None, engine=engine), folder

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_kill_9_at_random_moments_changes_nothing(tmp_path, undisturbed, name, record_property):
    moments = random.Random(f"{SEED} {name}")
    wanted, whole = undisturbed(name)
    folder, hits, steps = tmp_path / "killed", 0, []
    for _ in range(KILLS):
        hits += killed(folder, name, moments)
        if has_checkpoint(folder):
            newest = checkpoint_folder(True, str(folder))
            assert weights_of(newest) == weights_of(whole / newest.name)
            steps.append(int(newest.name.split("-")[1]))
    assert steps == sorted(steps)
    assert finished(folder, name, resume=True) == wanted
    said = f"{name}: seed {SEED}, {KILLS} kills, {hits} while it saved, went on from {steps}"
    record_property("kills", said)
    sys.stdout.write(f"{said}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine"),
    [("dpo", None), ("kto, adapter", None), ("dpo", "fsdp2")],
    ids=["ddp", "ddp-adapter", "fsdp2"],
)
def test_so_do_kills_of_two_processes(tmp_path, undisturbed, name, engine, record_property):
    moments = random.Random(f"{SEED} {name} {engine}")
    wanted, _ = undisturbed(name, 2, engine)
    folder = tmp_path / "killed"
    hits = sum(killed(folder, name, moments, 2, engine) for _ in range(KILLS_OF_TWO))
    assert finished(folder, name, has_checkpoint(folder), 2, engine=engine) == wanted
    said = f"{name}, {engine or 'ddp'}: seed {SEED}, {KILLS_OF_TWO} kills, {hits} while it saved"
    record_property("kills", said)
    sys.stdout.write(f"{said}\n")


def _fill(folder, name, largest, sender):
    kill_worker.train_on_full_disk(folder, name, largest, lambda *what: sender.send(what))


@pytest.mark.slow
@pytest.mark.parametrize("largest", [0, 5_000, 60_000])
@pytest.mark.parametrize("name", ["dpo", "kto, adapter"])
def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(
    tmp_path, undisturbed, name, largest
):
    """The libraries meet it in their own ways: each file is cut at that length."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    folder = tmp_path / "full"
    process = PROCESSES.Process(target=_fill, args=(folder, name, largest, sender))
    process.start()
    sender.close()
    what, message = receiver.recv()
    process.join(60)
    if largest > 5_000 and "adapter" in name:
        assert what == "could"  # none of its files is so long
        return
    assert what == "cannot"
    assert f"cannot write {folder / 'checkpoint-3'}: " in message
    assert f"resume from {folder / 'checkpoint-2'}, which is whole" in message
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert finished(folder, name, resume=True) == undisturbed(name)[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_processes_stops_both_behind_one_checkpoint(
    tmp_path, undisturbed, rank
):
    folder = tmp_path / "stopped"
    run = Training(folder, "dpo", False, 2, delay_s=0.004)
    assert [run.told()[0] for _ in range(3)] == ["begun", "step", "saving"]
    run.send(rank, "SIGTERM")
    told = run.ended(0)[-1], run.ended(1)[-1]
    newest = checkpoint_folder(True, str(folder))
    step = int(newest.name.split("-")[1])
    assert 1 < step < 5
    for its, (what, (message, code)) in enumerate(told):
        by = "SIGTERM" if its == rank else "a signal to another process"
        assert (what, code) == ("stopped", 143)
        assert message.startswith(f"stopped by {by} after step {step}; saved {newest}")
    assert finished(folder, "dpo", True, 2) == undisturbed("dpo", 2)[0]


@pytest.mark.slow
def test_a_number_that_is_not_finite_in_one_of_two_processes_stops_both(tmp_path):
    run = Training(tmp_path, "dpo", False, 2, spoil=True)
    told = run.ended(0)[-1], run.ended(1)[-1]
    assert told[0] == told[1]
    what, message = told[0]
    assert what == "not finite"
    assert message.startswith("step 3: the loss is nan (process 1: its rows ")
    assert "(process 0" not in message
    assert checkpoint_folder(True, str(tmp_path)).name == "checkpoint-2"
    reports = [tmp_path / f"non_finite_step3_process{rank}.json" for rank in (0, 1)]
    rows = [[one["row"] for one in json.loads(r.read_text())["examples"]] for r in reports]
    assert len({*rows[0], *rows[1]}) == 8
