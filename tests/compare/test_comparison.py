"""A whole comparison: by a stand-in in seconds, and by the real commands."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from prefopt.compare import Comparison, Resources, compare

ONE = Resources(jobs=2)


@pytest.fixture
def run(tmp_path, toy_rows, toy_start):
    """Run a comparison in a folder; return what it found and what it printed."""

    def run_it(losses="dpo, ipo", root="out", **more):
        text = io.StringIO()
        arguments = {"seeds": 2, "resources": ONE, "options": {"max_steps": 3}, **more}
        found = compare(
            toy_start,
            toy_rows,
            tmp_path / root,
            losses=losses,
            console=Console(file=text, width=160),
            **arguments,
        )
        return found, text.getvalue()

    return run_it


def test_all_runs_are_trained_measured_and_collected(run, calls, tmp_path):
    found, text = run()
    assert [run.state for run in found.runs] == ["done"] * 5
    assert [method.name for method in found.methods] == ["start", "dpo", "ipo"]
    assert len(found.methods[1].by_seed["accuracy"]) == 2
    assert [test.metric for test in found.tests] == ["accuracy"]
    assert found.data_baselines["longer"].value == 0.6
    assert {curve.metric for curve in found.curves} == {"loss"}
    assert found.verdict in text.replace("\n", " ") or found.verdict.split(".")[0] in text
    assert Comparison.load(tmp_path / "out" / "results.json") == found
    spec = yaml.safe_load((tmp_path / "out" / "comparison.yaml").read_text())
    assert [method["name"] for method in spec["methods"]] == ["dpo", "ipo"]
    assert [call.split()[0] for call in calls()].count("train") == 4


def test_what_runs_need_of_the_start_is_computed_first_and_once(run, calls):
    run()
    made = [call.split() for call in calls()]
    words = [word for word, _ in made]
    assert words[0] == "cache"
    assert (words.count("cache"), words.count("eval")) == (1, 5)
    assert made[words.index("eval")][1].startswith("start")


def test_training_does_not_wait_for_the_start_to_be_measured(run, calls):
    run(seeds=1)
    words = [call.split()[0] for call in calls()]
    assert words[-2:] == ["eval", "eval"]
    assert sorted(words[1:4]) == ["eval", "train", "train"]


def test_a_start_that_cannot_be_measured_ends_no_other_run(run, calls, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAILS", "start")
    found, text = run()
    assert [run.state for run in found.runs] == ["failed", *["done"] * 4]
    assert "failed in evaluation: prefopt: error: this one fails" in text


def test_references_that_cannot_be_computed_end_no_run(run, calls, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAILS", "reference")
    found, text = run()
    assert [run.state for run in found.runs] == ["done"] * 5
    assert "this one fails; each run does it by itself" in text


def test_a_training_that_fails_is_not_tried_again(run, calls, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAILS", "ipo")
    found, _ = run()
    assert [run.state for run in found.runs] == ["done"] * 3 + ["failed"] * 2
    assert sum(call.startswith("train ipo") for call in calls()) == 2


def test_what_is_done_is_not_done_again_and_a_method_more_is_added(run, calls):
    first, _ = run()
    before = len(calls())
    again, text = run()
    assert len(calls()) == before
    assert "5 of 5 are done already" in text
    assert (again.methods, again.tests) == (first.methods, first.tests)
    more, _ = run("dpo, ipo, orpo")
    assert len(calls()) == before + 4
    assert more.methods[:3] == first.methods


def test_baselines_are_run_beside_the_losses_and_after_what_they_need(run, calls):
    asked = {"baselines": "sft, rl, best_of_n", "evaluation": {"reward": "r.py:reward"}}
    found, text = run("dpo", **asked)
    assert "a reward model is trained and measured, too" in text
    names = ["start", "dpo", "reward model", "sft on the chosen", "rl, learnt reward", "best of 16"]
    assert [method.name for method in found.methods] == names
    assert [method.is_baseline for method in found.methods] == [True, False, *[True] * 4]
    assert {run.state for run in found.runs} == {"done"}
    assert [run.method for run in found.runs].count("best of 16") == 1
    order = [call.split()[0] for call in calls()]
    assert order.index("rl") > max(at for at, word in enumerate(order) if word == "reward_model")
    again, _ = run("dpo", **asked)
    assert len(calls()) == len(order)
    assert again.methods == found.methods


@pytest.mark.slow
def test_baselines_by_the_real_commands(run, tmp_path):
    reward = tmp_path / "rewards.py"
    reward.write_text(
        "def count(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    options = {"max_steps": 2, "use_cpu": True, "per_device_train_batch_size": 4}
    found, text = run(
        "dpo",
        seeds=1,
        baselines="sft, reward_model, rl, rl_true, best_of_n",
        options=options,
        evaluation={"reward": f"{reward}:count", "max_new_tokens": 6, "max_prompts": 5},
        held_out=0.3,
    )
    assert {run.state for run in found.runs} == {"done"}, text
    results = {method.name: method for method in found.methods}
    (best,) = tmp_path.glob("out/runs/best_of_16-0-*")
    drawn = (best / "samples" / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in drawn]
    groups: dict[int, list[int]] = {}
    for row in rows:
        if row["temperature"] == 1:
            groups.setdefault(row["row"], []).append(len(row["completion"]))
    assert {len(group) for group in groups.values()} == {17}
    largest = [max(group[1:]) for group in groups.values()]
    expected = sum(largest) / len(largest)
    assert results["best of 16"].metrics["reward"].value == pytest.approx(expected)
    assert "accuracy" not in results["best of 16"].metrics
    tested = {name for test in found.tests for name in (test.first, test.second)}
    assert tested == {*results} - {"start", "best of 16"}
    tokens = {run.method: run.tokens for run in found.runs}
    assert tokens["rl, true reward"] <= 4 * 4 * (6 + 6)  # twice the steps, of 4 answers
    assert tokens["rl, true reward"] > 4 * 4 * 6
    assert abs(tokens["reward model"] / tokens["dpo"] - 1) < 0.2
    assert "Of the baselines" in found.verdict


def test_one_failure_is_shown_and_ends_no_other(run, calls, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAILS", "ipo-1")
    found, text = run()
    assert [run.state for run in found.runs] == ["done", "done", "done", "done", "failed"]
    assert found.runs[-1].error == "prefopt: error: this one fails"
    assert "failed: prefopt: error: this one fails" in text
    assert [len(method.by_seed["accuracy"]) for method in found.methods] == [1, 2, 1]
    monkeypatch.delenv("STAND_IN_FAILS")
    again, _ = run()
    assert again.runs[-1].state == "done"


def test_the_trial_of_the_chosen_rate_is_not_trained_again(run, calls):
    pytest.importorskip("optuna")
    found, text = run(search_rates=[1e-4, 1e-3])
    trained = [call for call in calls() if call.startswith("train")]
    assert len(trained) == len(set(trained)) == 2 * 2 + 2  # two rates each, and the second seeds
    assert text.count("of 2 tried") == 2
    assert found.methods[1].options["learning_rate"] in (1e-4, 1e-3)


def test_a_dry_run_trains_nothing(run, calls):
    found, text = run(dry_run=True)
    assert calls() == []
    assert [run.state for run in found.runs] == ["waiting"] * 5
    assert "4 runs to train, 12 steps" in text
    assert "trials" not in text
    assert "before them 8 trials of learning rates" in run(dry_run=True, search_trials=4)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": "dpo", "options": {"learning_rat": 1}}, "dpo: prefopt train has no option"),
        ({"losses": "dpo", "options": {"seed": 1}}, "seed is set by the comparison"),
        ({"losses": "orpo", "options": {"beta": 0.1}}, "orpo: beta=0.1"),
        ({"losses": "dpo", "seeds": 0}, "seeds must be at least 1"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(run, calls, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(**arguments)
    assert calls() == []


KILLED = """
import sys
from pathlib import Path
from datasets import Dataset
from prefopt.compare import Resources, compare, tasks
from prefopt.toy import sample_pairs
if {program!r}:
    tasks.PYTHON = (sys.executable, {program!r})
compare({start!r}, Dataset.from_list(sample_pairs(120)), {root!r}, losses="dpo, ipo", seeds={seeds},
        resources=Resources(jobs=2), options={options!r}, evaluation={evaluation!r})
"""


def kill_and_restart(script, after_s):
    """Start a script and kill it and all that it started, at each of these times; then finish."""
    for seconds in after_s:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def numbers_of(root):
    """Return what does not depend on clocks and places of a comparison."""
    found = Comparison.load(Path(root) / "results.json")
    clocks = ("runtime", "per_second")
    curves = [one for one in found.curves if not one.metric.endswith(clocks)]
    runs = [(run.name, run.state, run.tokens) for run in found.runs]
    return found.methods, found.tests, curves, runs, found.samples, found.verdict


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_results(
    run, calls, tmp_path, toy_start, monkeypatch
):
    from tests.compare.conftest import PROGRAM

    monkeypatch.setenv("STAND_IN_STEP_S", "0.3")
    root = str(tmp_path / "killed")
    script = KILLED.format(
        program=str(PROGRAM),
        start=toy_start,
        root=root,
        seeds=2,
        options={"max_steps": 3},
        evaluation={},
    )
    moments = [random.uniform(3, 14) for _ in range(3)]
    kill_and_restart(script, moments)
    run(root="whole")
    assert numbers_of(root) == numbers_of(tmp_path / "whole")


@pytest.mark.slow
def test_real_runs_that_are_killed_go_on_to_the_same_results(tmp_path, toy_rows, toy_start):
    options = {"max_steps": 30, "learning_rate": 1e-3, "use_cpu": True, "logging_steps": 5}
    given = {"options": options, "evaluation": {"max_new_tokens": 8, "max_prompts": 4}}
    root = str(tmp_path / "killed")
    script = KILLED.format(program="", start=toy_start, root=root, seeds=1, **given)
    # Six processes that take 5 s of CPU each: it is killed while the start or a method is at work.
    kill_and_restart(script, [random.uniform(8, 30) for _ in range(2)])
    more = {"losses": "dpo, ipo", "seeds": 1, "resources": ONE}
    compare(toy_start, toy_rows, tmp_path / "whole", **more, **given)
    assert numbers_of(root) == numbers_of(tmp_path / "whole")
    assert {run.state for run in Comparison.load(tmp_path / "whole" / "results.json").runs} == {
        "done"
    }


def test_the_report_is_written_where_there_is_one(run, calls, tmp_path, monkeypatch):
    from prefopt.compare import comparison

    found, text = run()
    assert "dpo" in (tmp_path / "out" / "report.html").read_text()
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in text

    def lacks(*arguments):
        raise ImportError("a report needs plotly")

    monkeypatch.setattr(comparison, "write_report", lacks)
    assert run()[0].methods == found.methods
    assert "no report: a report needs plotly" in run()[1]


def test_rows_may_be_a_file_and_those_held_out_given(calls, toy_rows, toy_start, tmp_path):
    paths = [tmp_path / "rows.jsonl", tmp_path / "others.jsonl"]
    for path, part in zip(paths, (toy_rows, toy_rows.select(range(9))), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {"dataset": str(paths[0]), "eval_dataset": str(paths[1])}
    text = io.StringIO()
    more = {"losses": "dpo", "dry_run": True, "console": Console(file=text, width=160)}
    found = compare(toy_start, output_dir=tmp_path / "out", validation=0, **files, **more)
    sizes = found.spec["data"]["rows"]
    assert (sizes["validation"], sizes["held_out"]) == (0, 9)
    assert 0 < sizes["train"] < 111
    assert f"{120 - sizes['train']} rows are not trained on" in text.getvalue()
