"""Two processes with batches of 4 train as one with a batch of 8."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(script, arguments, processes):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*launcher, str(ROOT / "tests/equivalence" / script), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def train(folder, loss, kind, processes, architecture="llama", accumulated=1):
    folder.mkdir()
    batch_size = str(8 // processes // accumulated)
    arguments = [str(folder), loss, kind, batch_size, architecture, str(accumulated)]
    run("run_ranks.py", arguments, processes)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("dpo + 0.3*sft", "paired"),
        ("kto", "unpaired"),
        ("dpo", "ranked"),
        ("aot", "paired"),
        ("bco", "paired"),
    ],
)
def test_two_processes_train_and_evaluate_as_one(tmp_path, loss, kind):
    one = train(tmp_path / "one", loss, kind, 1)
    two = train(tmp_path / "two", loss, kind, 2)
    # Before the first step policy and reference are one, and margins the signs of rounding errors.
    for run in (one, two):
        run["steps"][0].pop("rewards/accuracies", None)
    # Log-probs of some 30 nats are rounded to 2e-6; the KL estimate is a difference of such.
    for mine, wanted in zip(two["steps"], one["steps"], strict=True):
        assert set(mine) == set(wanted)
        for name, value in wanted.items():
            assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=1e-5)
    for name, value in one["eval"].items():
        if not any(part in name for part in ("runtime", "per_second", "preparation")):
            assert two["eval"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_a_router_loss_of_two_processes_is_that_of_two_micro_batches(tmp_path):
    accumulated = train(tmp_path / "one", "dpo", "paired", 1, "qwen3_moe", accumulated=2)
    two = train(tmp_path / "two", "dpo", "paired", 2, "qwen3_moe")
    for mine, wanted in zip(two["steps"], accumulated["steps"], strict=True):
        for name in ("loss", "aux_loss", "grad_norm"):
            assert mine[name] == pytest.approx(wanted[name], rel=1e-4), name


def stores(folder, which, processes):
    folder.mkdir()
    run("run_stores.py", [str(folder), which], processes)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    (filled,) = stores(tmp_path_factory.mktemp("stores") / "alone", "one", 1)
    return filled


@pytest.mark.slow
@pytest.mark.parametrize("which", ["one", "own"])
def test_two_processes_share_filling_and_each_has_a_complete_store(tmp_path, alone, which):
    """In one file, as on one node, or in a file each, as on two nodes."""
    both = stores(tmp_path / "both", which, 2)
    assert alone["scored"] == 24
    assert sorted(rank["scored"] for rank in both) == [12, 12]
    for rank in both:
        assert rank["fingerprint"] == alone["fingerprint"]
        assert (rank["again"], rank["computed"]) == (0, [24, 0])
        assert len(rank["values"]) == 24
        for mine, wanted in zip(rank["values"], alone["values"], strict=True):
            assert mine == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert both[0]["values"] == both[1]["values"]
