"""A store that a tiny model filled, and what lies in it."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from prefopt.cli import cache
from prefopt.reference import default_folder
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME

QUIET = ("--report_to=none", "--use_cpu", "--disable_tqdm=true")


@pytest.fixture(scope="session")
def run_of(model_folder, data_files):
    """The options of a run on a kind of data."""

    def options(kind="paired", model=model_folder, **more):
        named = [f"--{name}={value}" for name, value in more.items()]
        return ("--model", model, "--dataset", data_files[kind], *QUIET, *named)

    return options


@pytest.fixture(scope="session")
def filled_folder(tmp_path_factory, run_of):
    """Folder of a store that holds the log-probs of the pairs; not to be changed."""
    folder = tmp_path_factory.mktemp("filled")
    assert cache.main(["fill", *map(str, run_of(cache_dir=folder))]) == 0
    return folder


@pytest.fixture
def filled(filled_folder):
    """The same store at the place where commands look; may be changed."""
    shutil.copytree(filled_folder, default_folder(), dirs_exist_ok=True)
    return default_folder() / FILE_NAME


@pytest.fixture(scope="session")
def other_model(model_folder, tmp_path_factory) -> Path:
    """The tiny model with one weight changed."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def info(prefopt):
    """Return what `info --json` says."""
    result = prefopt("cache", "info", "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def reference_of(path):
    """Return number and fingerprint of the only reference of a store."""
    (row,) = Database(path).connection.execute("SELECT id, fingerprint FROM reference").fetchall()
    return row


def values_in(path):
    """Return the log-probs of a store, by fingerprint and key."""
    database = Database(path)
    rows = database.connection.execute(
        "SELECT r.id, r.fingerprint, c.key FROM completion c JOIN reference r ON r.id = c.reference"
    ).fetchall()
    return {(name, key): database.get(number, name, key).tobytes() for number, name, key in rows}


def damage_a_value(path):
    """Change one stored log-prob behind the back of its checksum."""
    with sqlite3.connect(path) as connection:
        (blob,) = connection.execute("SELECT logps FROM piece WHERE id = 1").fetchone()
        changed = (np.frombuffer(blob, "<f4") - 1).tobytes()
        connection.execute("UPDATE piece SET logps = ? WHERE id = 1", (changed,))
    connection.close()


@pytest.fixture
def two(prefopt, filled, run_of, other_model):
    """A store with two references; fingerprints, the longer unused first."""
    assert prefopt("cache", "fill", *run_of(model=other_model)).code == 0
    return [item["fingerprint"] for item in reversed(info(prefopt)["references"])]
