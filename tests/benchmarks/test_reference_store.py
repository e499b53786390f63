"""The benchmark of the reference store measures what it says, on a tiny model and a small store."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prefopt.reference.store.database import Database

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PAIRS, ROWS, STEPS = 24, 500, 3


class Channel:
    """A parent that lets the worker go on to given completions."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def receive(self):
        return {"until": self.answers.pop(0)}


def test_options_go_before_those_of_quick(load):
    options = load("reference_store").parse(["--quick", "--rows", "7", "--parts", "look,fill"])
    assert (options.size, options.rows, options.parts) == ("tiny", 7, ["look", "fill"])
    assert load("reference_store").parse([]).rows == 1_000_000


def test_passes_are_counted_and_pause_where_the_parent_said(load):
    worker = load("reference_store_worker")
    channel = Channel(4, 1e9)
    passes = worker.Passes(channel, turns=True)
    passes.allowed = 2
    paused_at = []
    channel.send = lambda **message: paused_at.append(passes.completions)
    for _ in range(4):
        passes.before(2)
    assert (passes.forwards, passes.completions) == (4, 8)
    assert paused_at == [2, 4]


def test_pauses_are_not_timed(load, monkeypatch):
    worker = load("reference_store_worker")
    clock = [0.0]
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock[0])
    channel = Channel(1e9)
    channel.send = lambda **message: clock.__setitem__(0, clock[0] + 100)  # others have their turn
    passes = worker.Passes(channel, turns=True)

    def compute():
        clock[0] += 3
        passes.before(2)
        clock[0] += 4

    passes.timed(compute)()
    assert passes.seconds == 7


def test_sides_that_differ_stop_the_benchmark(load, tmp_path):
    bench = load("reference_store")
    said = {}
    for name, values in (("prefopt", [[-100.0, -50.0]]), ("TRL", [[-100.0, -50.01]])):
        np.save(tmp_path / f"{name}.npy", np.array(values))
        said[name] = {"weights": 1.0, "sums": str(tmp_path / f"{name}.npy")}
    with pytest.raises(SystemExit, match="values of TRL differ"):
        bench.compared(said)
    said["TRL"]["weights"] = 2.0
    with pytest.raises(SystemExit, match="different models"):
        bench.compared(said)


def test_a_reference_forward_in_a_second_run_stops_the_benchmark(load):
    bench = load("reference_store")
    runs = {
        run: {side: {"loss": 0.69, "reference_forwards": 0} for side in bench.SIDES}
        for run in ("first run", "the same again", "another loss")
    }
    bench.check_starts(runs)
    runs["another loss"]["prefopt"]["reference_forwards"] = 1
    with pytest.raises(SystemExit, match="1 reference forwards"):
        bench.check_starts(runs)


def test_a_file_is_weighed_by_what_it_holds(load, tmp_path):
    database = Database(tmp_path / "reference.sqlite")
    reference, origin = database.reference("f", {}), database.origin({})
    values = [(bytes([i]) * 16, np.zeros(100, dtype=np.float32)) for i in range(200)]
    database.put(reference, "f", origin, values)
    database.checkpoint()
    database.close()
    found = load("reference_store").storage_of(tmp_path / "reference.sqlite")
    assert (found["completions"], found["tokens"]) == (200, 20_000)
    assert found["bytes"] == (tmp_path / "reference.sqlite").stat().st_size
    left = found["bytes"] - 80 * 200
    assert found["bytes_per_token_after_80_a_completion"] == pytest.approx(left / 20_000)
    if found["tables"]:  # a float32 has four bytes, a key sixteen
        assert 4 < found["bytes_per_token"] < 6
        assert 16 < found["bytes_per_completion"] < 160
        assert sum(found["tables"].values()) == found["bytes"]


def test_texts_of_the_large_store_are_their_own_and_come_again(load):
    worker = load("reference_store_worker")
    texts, again = worker.Texts(300, 0), worker.Texts(300, 0)
    seen = {
        (texts.prompt(row).tobytes(), texts.completion(row, place).tobytes())
        for row in range(300)
        for place in (0, 1)
    }
    assert len(seen) == 600
    assert texts.completion(7, 1).tolist() == again.completion(7, 1).tolist()
    assert set(texts.values(7, 1).tolist()) == {-15.0}
    assert len(texts.values(7, 1)) == len(texts.completion(7, 1))


# A run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory, shared_dir):
    """Everything that a short run of all parts wrote."""
    folder = tmp_path_factory.mktemp("reference_store")
    command = [sys.executable, str(BENCHMARKS / "reference_store.py"), "--quick", "--allow-dirty"]
    command += ["--out", str(folder), "--shared", str(shared_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(measured):
    return json.loads((measured / "reference_store.json").read_text())["found"]


@pytest.mark.slow
def test_both_sides_fill_all_and_agree(measured, found):
    record = json.loads((measured / "reference_store.json").read_text())["record"]
    assert len(record["commit"]) == 40
    assert {"torch", "transformers", "trl", "sqlite"} <= record["versions"].keys()
    sides = found["fill"]["sides"]
    assert list(sides) == ["prefopt", "TRL, batch 8", "TRL, batch 2"]
    assert {side["completions"] for side in sides.values()} == {2 * PAIRS}
    assert [side["forwards"] for side in sides.values()][1:] == [PAIRS / 8, PAIRS / 2]
    assert 0 < sides["TRL, batch 8"]["largest_difference"] < 1e-2
    seconds = {name: side["seconds"]["median"] for name, side in sides.items()}
    default = seconds["TRL, batch 8"] / seconds["prefopt"]
    best = min(seconds["TRL, batch 8"], seconds["TRL, batch 2"]) / seconds["prefopt"]
    assert found["fill"]["ratio_to_default"] == pytest.approx(default)
    assert found["fill"]["ratio_to_best"] == pytest.approx(best)
    assert found["fill"]["storage"]["completions"] == 2 * PAIRS


@pytest.mark.slow
def test_another_loss_costs_us_no_reference_forward_and_trl_all(found):
    forwards = {
        run: {side: said["reference_forwards"] for side, said in sides.items()}
        for run, sides in found["start"]["runs"].items()
    }
    assert forwards["first run"]["prefopt"] > 0
    assert forwards["first run"]["trl"] == PAIRS / 8
    assert forwards["the same again"] == {"prefopt": 0, "trl": 0}  # TRL's cache was given a chance
    assert forwards["another loss"] == {"prefopt": 0, "trl": PAIRS / 8}


@pytest.mark.slow
def test_every_look_up_of_training_is_timed(found):
    serve = found["serve"]
    assert len(serve["seconds"]) == serve["steps"] == STEPS
    assert serve["calls"] >= STEPS
    assert 0 < serve["share_of_look_up"] < serve["share_of_serving"] < 1


@pytest.mark.slow
def test_all_pairs_of_the_large_store_are_looked_up(found):
    look = found["look"]
    assert sum(part["pairs"] for part in look["parts"]) == ROWS
    assert look["storage"]["completions"] == 2 * ROWS
    assert look["completions_per_s"] == 2 * look["pairs_per_s"] > 0
    assert 100 < look["before_mb"] <= look["after_mb"] * 1.1


@pytest.mark.slow
def test_table_and_chart_are_written(measured):
    text = (measured / "reference_store.md").read_text()
    for part in ("Filling: 24 pairs", "To the first step", "Serving: 3", "a store of 500 pairs"):
        assert part in text
    assert (measured / "reference_store.png").stat().st_size > 10_000
