"""Whatever launches training, it is training in one process: same losses, same weights."""

import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.launches.cells import ALL_CELLS, REFUSALS, STEPS
from tests.launches.engines import ALONE, ALONE_LORA, ENGINES, Engine

# Seconds for all cells of a row, on a machine that does other things beside.
TIMEOUT = 900


class Rows:
    """Rows of the matrix, each trained when it is first asked for, by whichever test process.

    Args:
        folder: Where what comes out is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def cell(self, engine: Engine, name: str) -> tuple[dict[str, Any], Path]:
        """Return what a cell gave, and its folder."""
        folder = self._folder / engine.name
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / "said.txt"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not said.is_file():
                said.write_text(self._run(engine))
        place = folder / name.replace(" ", "-")
        result = place / "result.json"
        assert result.is_file(), f"{engine.name}, {name}: {said.read_text()}"
        return json.loads(result.read_text()), place

    def _run(self, engine: Engine) -> str:
        script = str(ROOT / "tests/launches/run_cells.py")
        command = [*engine.command(), script, str(self._folder / engine.name), engine.name]
        try:
            done = subprocess.run(
                [*command, *engine.cells, *engine.refusals],
                cwd=ROOT,
                env=engine.variables(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            return f"it hung: {str(error.stderr)[-3000:]}"
        return done.stderr[-3000:]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    # Test processes have a folder each, in one that is theirs together.
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return Rows(shared / "launches")


def weights(place):
    (file,) = (place / "saved").glob("*.safetensors")
    return load_file(file)


CELLS_OF_ROWS = [
    pytest.param(engine, name, id=f"{engine}, {name}")
    for engine in ENGINES.values()
    for name in engine.cells
]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "name"), CELLS_OF_ROWS)
def test_a_launch_trains_as_one_process_does(rows, engine, name):
    cell, alone = ALL_CELLS[name], ALONE_LORA if engine.lora else ALONE
    found, place = rows.cell(engine, name)
    assert "refused" not in found
    wanted, place_alone = rows.cell(alone, name)
    assert found["world"] == engine.processes
    assert found["sharded"] == (engine.is_sharded is not None)
    assert len(found["losses"]) == STEPS
    if not cell.other:
        assert found["losses"][0] == pytest.approx(cell.first_loss, abs=1e-5)
    assert found["losses"] == pytest.approx(wanted["losses"], abs=3e-2 if cell.rounded else 1e-5)
    mine, theirs = weights(place), weights(place_alone)
    assert mine.keys() - theirs.keys() <= {"lm_head.weight"}  # tied, and gathered twice
    far = 0.06 * wanted["moved"] if cell.rounded else 1e-5
    for part, weight in theirs.items():
        torch.testing.assert_close(mine[part], weight, rtol=0, atol=far)
    if cell.rounded:
        return
    tolerance = {"rel": 1e-4, "abs": 1e-5}
    for metric, value in wanted["eval"].items():
        if not any(part in metric for part in ("runtime", "per_second", "preparation")):
            assert found["eval"][metric] == pytest.approx(value, **tolerance), metric
    for own, other in zip(found["rewards"], wanted["rewards"], strict=True):
        assert own == pytest.approx(other, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alone", "name"), [(alone, name) for alone in (ALONE, ALONE_LORA) for name in alone.cells]
)
def test_what_is_compared_has_been_trained(rows, alone, name):
    found, _ = rows.cell(alone, name)
    assert found["moved"] > 1e-3
    assert abs(found["losses"][-1] - found["losses"][0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "name"),
    [(engine, name) for engine in ENGINES.values() for name in engine.refusals],
    ids=str,
)
def test_what_would_be_wrong_is_refused_in_a_sentence(rows, engine, name):
    found, _ = rows.cell(engine, name)
    assert REFUSALS[name] in found["refused"]
