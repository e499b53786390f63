"""One run: its commands, its state, and what became of it."""

import os
import subprocess
import sys
import threading
import time

import pytest

from prefopt.compare import tasks
from prefopt.compare.tasks import (
    Stage,
    Task,
    TaskState,
    digest_of,
    execute,
    last_line,
    progress_of,
    read_state,
    retry,
    state_of,
)


@pytest.fixture(autouse=True)
def _plain_python(monkeypatch):
    monkeypatch.setattr(tasks, "PYTHON", (sys.executable,))


def stage(name, code, **more):
    return Stage(name, ("-c", code), digest_of(code), name, **more)


def task(folder, *stages, **files):
    return Task("one", folder / "one", stages, files)


def test_stages_are_run_in_order_and_once(tmp_path):
    note = "open('{}', 'a').write('{}')"
    one = task(
        tmp_path,
        stage("first", note.format(tmp_path / "notes", "a")),
        stage("second", note.format(tmp_path / "notes", "b")),
    )
    assert state_of(one) == TaskState()
    state = execute(one)
    assert state.state == "done"
    assert set(state.seconds) == {"first", "second"}
    assert execute(one) == state == read_state(one.folder)
    assert (tmp_path / "notes").read_text() == "ab"


def test_a_stage_with_another_digest_is_run_again_and_those_before_are_not(tmp_path):
    note = f"open('{tmp_path / 'notes'}', 'a').write('{{}}')"
    first = stage("first", note.format("a"))
    execute(task(tmp_path, first, stage("second", note.format("b"))))
    other = task(tmp_path, first, stage("second", note.format("c")))
    assert state_of(other).state == "waiting"
    assert execute(other).state == "done"
    assert (tmp_path / "notes").read_text() == "abc"


def test_files_are_written_and_the_environment_is_given(tmp_path):
    code = f"import os; open('{tmp_path / 'seen'}', 'w').write(os.environ['VALUE'])"
    execute(task(tmp_path, stage("only", code), **{"a.yaml": "text"}), {"VALUE": "given"})
    assert (tmp_path / "seen").read_text() == "given"
    assert (tmp_path / "one" / "a.yaml").read_text() == "text"


def test_a_failure_ends_the_task_with_its_last_line_and_can_be_tried_again(tmp_path):
    fails = "import sys; print('prefopt: error: no'); print('more', file=sys.stderr); sys.exit(2)"
    one = task(tmp_path, stage("first", "pass"), stage("second", fails), stage("third", "pass"))
    state = execute(one)
    assert (state.state, state.stage, state.error) == ("failed", "second", "prefopt: error: no")
    assert set(state.done) == {"first"}
    retry(one)
    assert state_of(one).state == "waiting"
    assert set(state_of(one).done) == {"first"}


def test_a_process_that_is_killed_says_by_what(tmp_path):
    code = "import os; print('at work', flush=True); os.kill(os.getpid(), 9)"
    assert "ended by SIGKILL" in execute(task(tmp_path, stage("only", code))).error
    (tmp_path / "one" / "log.txt").write_text("")
    assert last_line(tmp_path / "one", 3) == "exit code 3"


def test_what_was_asked_to_leave_waits(tmp_path):
    stops = threading.Event()
    one = task(tmp_path, stage("only", "import sys; sys.exit(130)"), stage("never", "1/0"))
    state = execute(one, on_start=lambda process: stops.set(), stopping=stops.is_set)
    assert (state.state, state.done) == ("waiting", {})


def test_a_command_of_a_killed_comparison_is_waited_for(tmp_path):
    script = (
        "import sys; from prefopt.compare import tasks; from pathlib import Path\n"
        "tasks.PYTHON = (sys.executable,)\n"
        f"code = \"import time; time.sleep(1.5); open('{tmp_path}/notes', 'a').write('x')\"\n"
        "one = tasks.Task('one', Path(sys.argv[1]), (tasks.Stage('s', ('-c', code), 'd', 's'),))\n"
        "tasks.execute(one, on_start=lambda process: print('started', flush=True))\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "one")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        while "started" not in process.stdout.readline():
            pass
        process.kill()
    assert not (tmp_path / "notes").exists()
    begin = time.monotonic()
    code = f"print(open('{tmp_path / 'notes'}').read())"  # fails if it does not wait
    assert execute(task(tmp_path, stage("only", code))).state == "done"
    assert time.monotonic() - begin > 0.3


def test_progress_is_that_of_the_steps_asked_for(tmp_path):
    one = task(tmp_path)
    assert progress_of(one, 40) is None
    one.folder.mkdir()
    (one.folder / "log.txt").write_bytes(b"\r 3/40 [0:01\r 9/40 [0:02\rWriting shards 1/1 [00")
    assert progress_of(one, 40) == 9
    assert progress_of(one, 50) is None


def test_a_checkpoint_is_resumed_from_and_removed_when_the_run_is_done(tmp_path, monkeypatch):
    folder = tmp_path / "one" / "model" / "checkpoint-2"
    seen = f"import sys; open('{tmp_path / 'seen'}', 'w').write(' '.join(sys.argv[1:]))"
    one = task(tmp_path, Stage("train", ("-c", seen), "d", "model", True, False))
    folder.mkdir(parents=True)
    monkeypatch.setattr(tasks, "checkpoint_folder", lambda resume, output: folder)
    assert execute(one).state == "done"
    assert (tmp_path / "seen").read_text() == "--resume_from_checkpoint true"
    assert not folder.exists()


def test_without_a_whole_checkpoint_it_begins(tmp_path):
    seen = f"import sys; open('{tmp_path / 'seen'}', 'w').write(' '.join(sys.argv[1:]))"
    (tmp_path / "one" / "model" / "checkpoint-2").mkdir(parents=True)
    execute(task(tmp_path, Stage("train", ("-c", seen), "d", "model", True, True)))
    assert (tmp_path / "seen").read_text() == ""
    assert os.listdir(tmp_path / "one" / "model") == ["checkpoint-2"]
