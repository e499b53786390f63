"""Where runs are computed."""

import os
import signal
import sys
import threading
import time

import pytest

from prefopt.compare import executors, tasks
from prefopt.compare.executors import LocalProcesses, Submitit, make_executor, model_bytes
from prefopt.compare.tasks import Stage, Task, state_of


@pytest.fixture
def make_tasks(tmp_path, monkeypatch):
    """Make tasks, each of one command in Python."""
    monkeypatch.setattr(tasks, "PYTHON", (sys.executable,))

    def make(*codes):
        return [
            Task(f"t{i}", tmp_path / f"t{i}", (Stage("s", ("-c", code), code, "s"),))
            for i, code in enumerate(codes)
        ]

    return make


def test_one_failure_does_not_end_the_others(make_tasks):
    its = make_tasks("pass", "1 / 0", "pass")
    looks = []
    LocalProcesses(2).run(its, lambda: looks.append(1))
    assert [state_of(task).state for task in its] == ["done", "failed", "done"]
    assert state_of(its[1]).error == "ZeroDivisionError: division by zero"
    assert looks


def test_so_many_run_at_once_each_with_its_threads_and_device(make_tasks, tmp_path):
    code = (
        "import os, time; begin = time.time(); time.sleep(0.4);"
        f"open('{tmp_path}/' + str(os.getpid()), 'w').write(repr((begin, time.time(),"
        "os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])))"
    )
    LocalProcesses(2, threads=3, devices=(4, 7)).run(make_tasks(*[code] * 4), lambda: None)
    found = [eval(path.read_text()) for path in tmp_path.glob("[0-9]*")]
    at_once = [sum(a < end and begin < b for a, b, *_ in found) for begin, end, *_ in found]
    assert len(found) == 4
    assert max(at_once) <= 3  # itself, one beside it, one that began when that one ended
    assert {(threads, device) for *_, threads, device in found} == {("3", "4"), ("3", "7")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_all_to_leave_and_they_wait_to_go_on(make_tasks, number):
    code = "import sys, time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n sys.exit(130)"
    its = make_tasks(*[code] * 3)

    def send_when_running():
        while sum(state_of(task).state == "running" for task in its) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=send_when_running).start()
    with pytest.raises(KeyboardInterrupt):
        LocalProcesses(2).run(its, lambda: None)
    assert [state_of(task).state for task in its] == ["waiting"] * 3


# The debugging executor of submitit 1.5 leaves its logs open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submitit_runs_them(make_tasks, tmp_path, monkeypatch, cluster):
    pytest.importorskip("submitit")
    monkeypatch.setattr(executors, "POLL_S", 0.1)
    its = make_tasks("", "1 / 0", "")
    if cluster == "local":  # in another process, PYTHON is what it was
        its = [
            Task(task.name, task.folder, (Stage("s", words, task.name, "s"),))
            for task, words in zip(its, [("this",), ("no_such_module",), ("this",)], strict=True)
        ]
    executor = make_executor(cluster, tmp_path / "submitit", jobs=2, parameters={"timeout_min": 2})
    assert isinstance(executor, Submitit)
    executor.run(its, lambda: None)
    assert [state_of(task).state for task in its] == ["done", "failed", "done"]


def test_as_many_run_as_fit_by_cores_and_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    free = type("Memory", (), {"available": 12 * 2**30})()
    monkeypatch.setattr(executors.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(executors.torch.cuda, "device_count", lambda: 0)
    assert make_executor("processes", tmp_path) == LocalProcesses(8, 1)
    big = make_executor("processes", tmp_path, needed_bytes=5 * 2**30)
    assert big == LocalProcesses(2, 4)
    assert make_executor("processes", tmp_path, needed_bytes=1e15).jobs == 1
    monkeypatch.setattr(executors.torch.cuda, "device_count", lambda: 2)
    assert make_executor("processes", tmp_path) == LocalProcesses(2, None, range(2))
    assert make_executor("processes", tmp_path, use_gpus=False).devices == ()


def test_memory_is_guessed_by_the_files_of_the_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    assert model_bytes(str(tmp_path)) - model_bytes("hub/id") == pytest.approx(8000)


def test_what_is_no_executor_is_told(tmp_path):
    with pytest.raises(ValueError, match="no executor 'ray'; there are: processes, slurm"):
        make_executor("ray", tmp_path)
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        make_executor("processes", tmp_path, jobs=0)
    with pytest.raises(ValueError, match="parameters of submitit"):
        make_executor("processes", tmp_path, parameters={"timeout_min": 1})
