"""A start and rows of the toy world, and a stand-in for the commands that train and evaluate."""

import sys
from pathlib import Path

import pytest
from datasets import Dataset

from prefopt.compare import tasks
from prefopt.toy import build_model, build_tokenizer, sample_pairs

PROGRAM = Path(__file__).parent / "program.py"


@pytest.fixture(scope="session")
def toy_start(tmp_path_factory) -> str:
    """Folder of a toy model that was not fitted."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = build_tokenizer()
    build_model(tokenizer, hidden_size=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def toy_rows() -> Dataset:
    """A hundred and twenty pairs."""
    return Dataset.from_list(sample_pairs(120))


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Let commands be run by the stand-in; return a function that lists those that were."""
    path = tmp_path / "calls.txt"
    monkeypatch.setattr(tasks, "PYTHON", (sys.executable, str(PROGRAM)))
    monkeypatch.setenv("STAND_IN_CALLS", str(path))
    return lambda: path.read_text().splitlines() if path.exists() else []
