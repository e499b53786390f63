"""``prefopt demo``: every part of it, and that methods raise the true reward."""

import io
import json
import shlex
import sys

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.cli import main
from prefopt.cli.demo import DEFAULT_LOSSES, next_command, run_demo
from prefopt.cli.errors import UserError
from prefopt.compare import Comparison, tasks
from prefopt.data.load import load_rows
from prefopt.toy.experiment import ExperimentSize
from tests.compare.conftest import PROGRAM

SMALL = ExperimentSize(
    fit_steps=8,
    pairs=48,
    held_out_pairs=24,
    steps=3,
    batch_size=16,
    checkpoints=2,
    samples_per_prompt=2,
    frontier_samples=32,
    min_effective_samples=2,
)


# Half of the demo: what it shows, two methods show after so many steps.
HALF = ExperimentSize(pairs=3200, steps=50, checkpoints=2, frontier_samples=512)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo with two methods; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    text = io.StringIO()
    console = Console(file=text, width=100, highlight=False)
    assert run_demo(folder, losses=("dpo", "kto"), size=HALF, console=console) == 0
    return folder, text.getvalue()


@pytest.mark.slow
def test_the_demo_ends_with_a_table_a_picture_and_the_next_command(demo):
    folder, text = demo
    for words in ("held-out", "reward", "KL", "dpo", "kto", f"Picture: {folder / 'demo.png'}"):
        assert words in text.replace("\n", " ") or words in text
    assert text.index("KL,") < text.index("Picture") < text.index("prefopt train --model")
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_demo_leaves_its_numbers_its_data_and_its_models(demo):
    folder, _ = demo
    numbers = json.loads((folder / "demo.json").read_text())
    assert [run["name"] for run in numbers["runs"]] == ["dpo", "kto"]
    for run in numbers["runs"]:
        assert [point["step"] for point in run["path"]] == [0, 25, 50]
        assert run["path"][0]["margin"] == 0
        assert run["path"][0]["kl"][0] == pytest.approx(0, abs=1e-5)
        assert run["path"][-1]["kl"][0] > 0
    assert numbers["runs"][0]["path"][0]["reward"] == numbers["runs"][1]["path"][0]["reward"]
    assert len(load_rows(str(folder / "pairs.jsonl"))) == HALF.pairs
    assert set(load_rows(str(folder / "unpaired.jsonl")).column_names) >= {"prompt", "label"}
    runs = [folder / run["folder"] for run in numbers["runs"]]
    for model in (folder / "start", *(run / "model" for run in runs)):
        AutoModelForCausalLM.from_pretrained(model)
        AutoTokenizer.from_pretrained(model)
    assert "loss dpo" in (runs[0] / "log.txt").read_text()


@pytest.mark.slow
def test_the_demo_is_a_comparison(demo):
    folder, text = demo
    found = Comparison.load(folder / "results.json")
    assert [method.name for method in found.methods] == ["start", "dpo", "kto"]
    assert {"accuracy", "reward", "kl"} <= set(found.methods[1].metrics)
    assert len(found.frontier) > 1
    assert found.verdict in " ".join(text.split())
    assert "dpo" in (folder / "report.html").read_text()
    # What the picture shows of held-out pairs, the comparison has measured by itself.
    drawn = json.loads((folder / "demo.json").read_text())["runs"]
    for run, method in zip(drawn, found.methods[1:], strict=True):
        accuracy = method.metrics["accuracy"].value
        assert run["path"][-1]["accuracy"][0] == pytest.approx(accuracy, abs=1e-6)


def test_a_run_that_fails_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "PYTHON", (sys.executable, str(PROGRAM)))
    monkeypatch.setenv("STAND_IN_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("STAND_IN_FAILS", "dpo-0")
    console = Console(file=io.StringIO())
    with pytest.raises(UserError, match=r"dpo failed: prefopt: error: this one fails; .*log.txt"):
        run_demo(tmp_path / "out", losses=("dpo",), size=SMALL, console=console)


def test_the_next_command_is_one_the_demo_did_not_run(tmp_path):
    words = shlex.split(next_command(tmp_path / "a b", ("dpo",), SMALL))
    assert words[:2] == ["prefopt", "train"]
    assert words[words.index("--model") + 1] == str(tmp_path / "a b" / "start")
    assert words[words.index("--loss_type") + 1] not in ("dpo", *DEFAULT_LOSSES)


@pytest.mark.slow
def test_the_printed_command_runs_as_it_is(demo, capsys):
    _, text = demo
    line = next(line for line in text.splitlines() if line.startswith("prefopt train"))
    words = shlex.split(line)
    shorter = ["--max_steps", "3", "--use_cpu", "true", "--save_strategy", "no"]
    assert main([*words[1:], *shorter]) == 0
    capsys.readouterr()
    AutoModelForCausalLM.from_pretrained(words[words.index("--output_dir") + 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--losses", "ipoo"], "unknown loss 'ipoo'; did you mean 'ipo'"),
        (["--losses", "sft"], "'sft' defines no rewards on pairs"),
        (["--steps", "0"], "--steps must be at least 1"),
    ],
)
def test_a_mistake_is_one_message(options, message, tmp_path, capsys):
    assert main(["demo", "--output_dir", str(tmp_path / "out"), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_methods_raise_true_reward_and_held_out_accuracy(demo):
    folder, _ = demo
    numbers = json.loads((folder / "demo.json").read_text())
    limit = [(point["kl"], point["reward"]) for point in numbers["frontier"]]
    for run in numbers["runs"]:
        first, last = run["path"][0], run["path"][-1]
        assert last["accuracy"][1] > first["accuracy"][2]  # intervals apart
        assert last["reward"][0] > first["reward"][0] + 1.0
        reachable = [reward for kl, reward in limit if kl >= last["kl"][0]]
        assert not reachable or last["reward"][0] < reachable[0] + 0.15
