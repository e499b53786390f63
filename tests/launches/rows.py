"""Rows of the launch matrix, run once and read by each test that asks."""

import fcntl
import json
import subprocess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import ROOT
from tests.launches.engines import Engine

# Seconds for all cells of a row, on a machine that does other things beside.
TIMEOUT = 1500


class Rows:
    """Rows of the matrix, each trained when it is first asked for, by whichever test process.

    Args:
        folder: Where what comes out is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def cell(self, engine: Engine, name: str) -> tuple[dict[str, Any], Path]:
        """Return what a cell gave, and its folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        launch = engine.started_with[0].name
        said = self._folder / f"{launch}.said"
        with (self._folder / f"{launch}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not said.is_file():
                said.write_text(self._run(engine))
        place = self._folder / engine.name / name.replace(" ", "-")
        result = place / "result.json"
        assert result.is_file(), f"{engine.name}, {name}: {said.read_text()}"
        return json.loads(result.read_text()), place

    def _run(self, engine: Engine) -> str:
        script = str(ROOT / "tests/launches/run_cells.py")
        names = [row.name for row in engine.started_with]
        try:
            done = subprocess.run(
                [*engine.command(), script, str(self._folder), *names],
                cwd=ROOT,
                env=engine.variables(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            return f"it hung: {str(error.stderr)[-3000:]}"
        return done.stderr[-3000:]


def weights(place: Path) -> dict[str, Tensor]:
    """Return the weights that a cell saved."""
    (file,) = (place / "saved").glob("*.safetensors")
    return load_file(file)
