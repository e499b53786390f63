"""The comparison of QLoRA runs both command lines, on a tiny model, and records what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_ratios_are_those_of_neighbouring_steps(load):
    seconds = {"prefopt": [9.0, 1.0, 4.0, 2.0], "trl": [9.0, 2.0, 8.0, 6.0]}
    steps = {
        side: [{"seconds": second, "loss": 0.5 + number} for number, second in enumerate(its)]
        for side, its in seconds.items()
    }
    steps["trl"][1]["loss"] += 0.25
    del steps["prefopt"][3]["loss"], steps["trl"][3]["loss"]
    memory = {
        "prefopt": {"peak_mb": 50.0, "process_peak_mb": 60.0},
        "trl": {"peak_mb": 200.0, "process_peak_mb": 210.0},
    }
    found = load("qlora").summarise({"steps": steps, "memory": memory}, batch=8, warmup=1)
    assert found["speed_ratio"]["median"] == 2.0
    assert found["memory_ratio"] == 0.25
    assert (found["first_loss_difference"], found["largest_loss_difference"]) == (0.0, 0.25)
    assert found["sides"]["prefopt"]["pairs_per_s"]["median"] == 4.0


def test_sides_that_train_otherwise_are_not_compared(load):
    one = {"trained_parameters": 8, "quantised": 2, "optimiser": "adamw"}
    load("qlora").check_same_start({"prefopt": one, "trl": one | {"more": 1}})
    with pytest.raises(SystemExit, match="the sides differ in quantised"):
        load("qlora").check_same_start({"prefopt": one, "trl": one | {"quantised": 0}})


@pytest.mark.slow
def test_both_command_lines_train_and_all_is_recorded(load, tmp_path, shared_dir):
    for package in ("trl", "peft", "bitsandbytes"):
        pytest.importorskip(package)
    model = load("throughput_models").make_model("tiny", 0, dtype=torch.float32, attention="eager")
    model.save_pretrained(tmp_path / "model")
    load("throughput_data").make_tokenizer("tiny", shared_dir).save_pretrained(tmp_path / "model")
    command = [sys.executable, str(BENCHMARKS / "qlora.py"), "--model", str(tmp_path / "model")]
    options = ["--steps", "2", "--batch", "2", "--rank", "2", "--threads", "1", "--allow-dirty"]
    options += ["--shared", str(shared_dir), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "qlora.json").read_text())
    assert [len(found["steps"][side]) for side in ("prefopt", "trl")] == [3, 3]
    for side in ("prefopt", "trl"):
        assert found["hello"][side]["quantised"] == 14
        assert found["sides"][side]["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert "commit" in found
    table = (tmp_path / "out" / "qlora.md").read_text()
    assert "times as many pairs a second" in table
    assert (tmp_path / "out" / "qlora.png").stat().st_size > 1000
