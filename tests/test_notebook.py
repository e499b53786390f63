"""The notebook: made of its source, and run cell by cell."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = DOCS / "examples" / "notebook" / "two_losses.py"


@pytest.fixture(scope="module")
def notebook():
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["notebook"] = module
    spec.loader.exec_module(module)
    return module


def test_cells_are_code_or_text_without_marks(notebook):
    cells = notebook.cells_of("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\na = 1\n\n\nb = 2\n")
    assert cells == [(False, "# Title\n\nText."), (True, "a = 1\n\n\nb = 2")]


def test_the_notebook_is_that_of_its_source(notebook):
    made = json.loads(SOURCE.with_suffix(".ipynb").read_text())
    assert made == notebook.notebook_of(SOURCE.read_text()), "run docs/notebook.py"
    kinds = [cell["cell_type"] for cell in made["cells"]]
    assert kinds.count("code") == 5


@pytest.mark.slow
def test_its_cells_run_and_compare_two_losses(notebook, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for cell in notebook.cells_of(SOURCE.read_text()):
        if cell.is_code:
            exec(compile(cell.text, SOURCE.name, "exec"), names)
    out = capsys.readouterr().out
    assert "dpo - ipo: " in out
    accuracy = {name: float(its.mean()) for name, its in names["correct"].items()}
    assert min(accuracy.values()) > 0.6  # a coin has 0.5
    low, high = names["difference"].low, names["difference"].high
    assert low <= accuracy["dpo"] - accuracy["ipo"] <= high
    means = {name: float(its.mean()) for name, its in names["rewards"].items()}
    assert means["dpo"] > means["start"]
    assert means["ipo"] > means["start"]
