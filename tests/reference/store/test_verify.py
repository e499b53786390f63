"""Verifying a store: what is damaged or wrong is found, and what is missing is no mistake."""

import numpy as np
import pytest
from datasets import Dataset

from prefopt.data.prepared import completion_key
from prefopt.engine import Scorer
from prefopt.reference.fill import CompletionIndex, Filler, FillOptions
from prefopt.reference.live import ReferenceModel
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME, MemoryStore
from prefopt.reference.store.maintain import ReferenceInfo
from prefopt.reference.store.verify import (
    check_store,
    nearest_reference,
    recompute,
    tolerance_of,
)
from tests.models import tiny_model

ROWS = {
    "prompt_ids": [[3, 4, 5], [10, 11], [12]],
    "completion_ids": [[[6, 7, 8], [6, 9]], [[12], [13, 14, 15, 16]], [[3, 4], [5, 6, 7]]],
}


@pytest.fixture(scope="module")
def scorer():
    return Scorer(tiny_model("llama"))


@pytest.fixture
def store(scorer):
    store, dataset = MemoryStore(), Dataset.from_dict(ROWS)
    filler = Filler(store, lambda: ReferenceModel(scorer), FillOptions(show_progress=False))
    filler.fill(dataset, CompletionIndex.of(dataset, with_kl=False))
    return store


def compared(store, scorer, sample=100, parts=1, seed=0):
    whole = Dataset.from_dict(ROWS)
    datasets = [whole] if parts == 1 else [whole.select([0]), whole.select([1, 2])]
    return recompute(
        datasets,
        store,
        ReferenceModel(scorer),
        with_kl=False,
        sample=sample,
        seed=seed,
        tolerance=1e-3,
    )


def replace(store, prompt, completion, change):
    key = completion_key(np.array(prompt), np.array(completion))
    store._values[key] = change(store._values[key].copy())


@pytest.mark.parametrize("parts", [1, 2])
def test_what_was_stored_is_found_again(store, scorer, parts):
    found = compared(store, scorer, parts=parts)
    assert (found.completions, found.known, found.unknown) == (6, 6, 0)
    assert found.tokens == 15
    assert found.agrees
    assert 0 <= found.mean <= found.largest < 1e-4


def test_a_changed_token_is_found_and_measured(store, scorer):
    def change(logps):
        logps[1] += 0.5
        return logps

    replace(store, [10, 11], [13, 14, 15, 16], change)
    found = compared(store, scorer)
    assert not found.agrees
    assert found.largest == pytest.approx(0.5, abs=1e-4)
    assert found.mean == pytest.approx(0.5 / 15, abs=1e-4)


def test_no_number_agrees_with_nothing_but_itself(store, scorer):
    replace(store, [12], [3, 4], lambda logps: logps * np.float32(np.nan))
    found = compared(store, scorer)
    assert found.largest == np.inf
    assert not found.agrees


def test_another_model_does_not_agree(store):
    other = tiny_model("llama")
    other.model.norm.weight.data[::2] *= 3
    assert not compared(store, Scorer(other)).agrees


def test_a_sample_is_random_repeatable_and_of_the_size_asked_for(store, scorer):
    replace(store, [3, 4, 5], [6, 9], lambda logps: logps - 1)
    found = [compared(store, scorer, sample=2, parts=2, seed=seed) for seed in range(12)]
    assert {item.completions for item in found} == {2}
    assert {item.agrees for item in found} == {True, False}
    assert found[3] == compared(store, scorer, sample=2, parts=2, seed=3)


def test_what_the_store_does_not_know_is_counted_and_not_computed(store, scorer):
    del store._values[completion_key(np.array([10, 11]), np.array([12]))]
    found = compared(store, scorer)
    assert (found.completions, found.known, found.unknown) == (5, 5, 1)
    assert found.agrees


@pytest.mark.parametrize(
    ("facts", "tolerance"),
    [
        ({"dtype": "float32", "autocast": "none"}, 1e-3),
        ({"dtype": "float32", "autocast": "bf16"}, 0.5),
        ({"dtype": "float32", "autocast": "fp16"}, 0.1),
        ({"dtype": "float16", "autocast": "none"}, 0.1),
        ({"dtype": "bfloat16", "autocast": "none"}, 0.5),
        ({"dtype": "float32", "autocast": "none", "quantization": {"bits": 4}}, 0.5),
        ({}, 0.5),
    ],
)
def test_what_is_accepted_depends_on_the_precision(facts, tolerance):
    assert tolerance_of(facts) == tolerance


def test_the_nearest_reference_is_that_which_differs_in_least():
    def info(number, completions, **facts):
        return ReferenceInfo(number, str(number), facts, 0, 0, completions, 1, 1, ())

    facts = {"weights": "a", "config": "b", "autocast": "none"}
    references = [
        info(1, 1, weights="x", config="y", autocast="none"),
        info(2, 1, weights="a", config="b", autocast="bf16"),
        info(3, 0, **facts),  # holds nothing
    ]
    nearest, parts = nearest_reference(facts, references)
    assert (nearest.number, parts) == (2, ["autocast"])
    assert nearest_reference(facts, references[2:]) is None


# Whole --------------------------------------------------------------------------------------------


def test_reading_all_of_a_store_finds_each_damaged_value(tmp_path):
    database = Database(tmp_path / FILE_NAME)
    for name in ("aa" * 16, "bb" * 16):
        values = [(bytes([i]) * 16, np.full(4, -i, dtype=np.float32)) for i in range(100)]
        database.put(database.reference(name, {}), name, database.origin({}), values)
    assert check_store(database).is_intact
    assert check_store(database).completions == 200
    with database.writing() as connection:
        connection.execute("UPDATE piece SET logps = zeroblob(16) WHERE id IN (2, 3, 102)")
        connection.execute("DELETE FROM piece WHERE id = 50")
    found = check_store(database)
    assert not found.is_intact
    assert found.damaged == {"aa" * 16: 3, "bb" * 16: 1}
    assert found.problems == ()


def test_a_damaged_index_is_a_problem_of_the_file(tmp_path):
    database = Database(tmp_path / FILE_NAME)
    number = database.reference("aa" * 16, {})
    keys = np.random.default_rng(0).bytes(16 * 4000)
    values = [(keys[16 * i : 16 * i + 16], np.zeros(1, dtype=np.float32)) for i in range(4000)]
    database.put(number, "aa" * 16, database.origin({}), values)
    (root,) = database.connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'completion'"
    ).fetchone()
    database.checkpoint()
    database.close()
    content = bytearray((tmp_path / FILE_NAME).read_bytes())
    content[(root - 1) * 8192 : (root - 1) * 8192 + 64] = bytes(64)
    (tmp_path / FILE_NAME).write_bytes(content)
    found = check_store(Database(tmp_path / FILE_NAME))
    assert not found.is_intact
    assert found.problems
