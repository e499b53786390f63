"""The matrix while it runs."""

import io
import json

from rich.console import Console

from prefopt.compare.tasks import Stage, Task
from prefopt.compare.watch import Watch


def make(folder, count):
    return [
        Task(f"run{i}", folder / f"run{i}", (Stage("train", (), "d", "model"),))
        for i in range(count)
    ]


def put(task, **state):
    task.folder.mkdir(exist_ok=True)
    done = {"train": "d"} if state["state"] == "done" else {}
    (task.folder / "state.json").write_text(json.dumps({"done": done, **state}))


def test_without_a_terminal_each_change_is_a_line(tmp_path):
    text = io.StringIO()
    one, two, three = make(tmp_path, 3)
    put(one, state="done")
    with Watch([one, two, three], {}, Console(file=text, width=80)) as watch:
        watch.update()
        put(two, state="running", stage="train")
        watch.update()
        watch.update()
        put(two, state="done", seconds={"train": 3.2})
        put(three, state="failed", stage="train", error="no [memory]")
    assert text.getvalue().splitlines() == [
        "1 of 3 are done already",
        "run1: train",
        "run1: done after 3 s",
        "run2: failed in train: no [memory]",
    ]


def test_a_terminal_gets_a_table_that_fits(tmp_path):
    text = io.StringIO()
    tasks = make(tmp_path, 30)
    put(tasks[25], state="running", stage="train")
    (tasks[25].folder / "log.txt").write_text("4/40 [00:01")
    put(tasks[26], state="failed", stage="train", error="out of memory")
    console = Console(file=text, width=90, height=14, force_terminal=True)
    with Watch(tasks, {"run25": 40}, console) as watch:
        watch.update()
    shown = text.getvalue()
    for words in ("0 of 30 done", "4/40", "out of memory", "and 23 more"):
        assert words in shown, words


def test_a_run_that_is_trained_and_not_measured_yet_says_so(tmp_path):
    stages = (Stage("train", (), "d", "model"), Stage("evaluation", (), "e", "evaluation"))
    one = Task("one", tmp_path / "one", stages)
    two = Task("two", tmp_path / "two", stages)
    text, table = io.StringIO(), io.StringIO()
    put(one, state="waiting", done={"train": "d"}, seconds={"train": 3.2})
    put(two, state="waiting", done={"train": "of other options"})
    with Watch([one, two], {}, Console(file=table, width=80, force_terminal=True)) as watch:
        watch.update()
    with Watch([one, two], {}, Console(file=text, width=80)) as watch:
        put(one, state="running", stage="evaluation", done={"train": "d"})
        watch.update()
        put(one, state="waiting", done={"train": "d"}, seconds={"train": 3.2})
    assert text.getvalue().splitlines() == ["one: evaluation", "one: train done after 3 s"]
    assert "train done" in table.getvalue()
    assert "waiting" in table.getvalue()
