"""The example package of the documentation adds a loss that the command line then has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "prefopt_extra_loss"

pytestmark = pytest.mark.slow  # pip builds a wheel, and each command is a process


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder the example is installed to, from a copy: building leaves files in the sources."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", folder / "site"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *options, folder / "source"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def command(installed, tmp_path):
    """Run ``python -m prefopt`` with the example on the path: what it prints, on success."""

    def run(*argv: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefopt", *map(str, argv)],
            env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_loss_is_listed_and_shown_in_full(command):
    assert "\ncauchy " in command("losses")
    shown = command("losses", "cauchy")
    assert shown.startswith("cauchy\n  Cauchy: draws the reward margin to 1")
    assert "defaults     beta=0.1" in shown
    assert "reference    needed" in shown


@pytest.mark.parametrize("name", ["cauchy", "prefopt_extra_loss"])
def test_it_holds_the_contract(command, name):
    assert "cauchy" in (shown := command("losses", "check", name))
    assert "holds" in shown


def test_it_trains_by_name(command, model_folder, data_files, tmp_path):
    command(
        *("train", "--model", model_folder, "--dataset", data_files["paired"]),
        *("--loss_type", "cauchy + 0.2*sft", "--beta", 0.3, "--max_steps", 2),
        *("--per_device_train_batch_size", 2, "--output_dir", tmp_path / "out", "--use_cpu"),
        *("--report_to", "none"),
    )
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_its_code_is_ten_lines():
    source = (EXAMPLE / "prefopt_extra_loss.py").read_text()
    code = source.split('"""')[2::2]  # what stands between docstrings
    lines = [line for part in code for line in part.splitlines() if line.strip()]
    assert len(lines) <= 10
