"""The wait of a user: ratios by hand, and both command lines on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def one(side, seconds, **others):
    times = {"all": 10 * seconds, "start": 4 * seconds, "training": 6 * seconds, "step": seconds}
    same = {"trained": 5, "optimiser": "adamw", "losses": [0.7, 0.5], "peak_mb": 100 * seconds}
    return {"kind": "lora", "side": side} | times | same | others


def test_medians_of_both_sides_are_compared(load):
    bench = load("end_to_end")
    runs = [one("prefopt", seconds) for seconds in (1.0, 9.0, 2.0)]
    runs += [one("trl", 6.0, losses=[0.7, 0.75]), one("prefopt", 2.0) | {"kind": "full"}]
    (row,) = bench.compared(runs)  # TRL has not run the other kind yet
    assert row["sides"]["prefopt"]["all"] == 20
    assert row["ratios"] == pytest.approx(dict.fromkeys(row["ratios"], 3))
    assert row["losses_apart"] == pytest.approx(0.25)


def test_sides_that_train_something_else_are_not_compared(load):
    with pytest.raises(SystemExit, match="the sides differ"):
        load("end_to_end").compared([one("prefopt", 1.0), one("trl", 1.0, trained=6)])


@pytest.mark.slow
def test_both_command_lines_train_the_same_from_start_to_saved_model(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "end_to_end.py"), "--allow-dirty", "--size", "tiny"]
    command += ["--kinds", "lora", "--pairs", "4", "--batch", "2", "--threads", "1"]
    out = tmp_path / "made" / "before"
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads((out / "end_to_end_tiny.json").read_text())["compared"]
    assert row["losses_apart"] < 1e-4
    for its in row["sides"].values():
        assert 0 < its["step"] <= its["training"] < its["all"]
        assert its["start"] + its["training"] <= its["all"]
    assert "| | **TRL takes** |" in (out / "end_to_end_tiny.md").read_text()
