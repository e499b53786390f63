"""What the toy world's limits are made of: data as the recipes say, numbers, resumable runs."""

import importlib
import itertools
import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from prefopt.evaluation import frontier_at
from prefopt.toy import HELD_OUT_NAMES, make_prompt, sample_completion, true_reward
from prefopt.toy.grammar import (
    ADJECTIVES,
    CLAUSE_COUNTS,
    DEGREE_RATES,
    DEGREES,
    FORMS,
    JOINTS,
    NEGATED_VERBS,
    NOT_RATE,
    VERBS,
)

SLOW = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in ("record", "toy_limits_world", "toy_limits_worker", "toy_limits_report"):
            importlib.import_module(name)
        yield importlib.import_module("toy_limits")


@pytest.fixture(scope="module")
def worker(bench):
    return sys.modules["toy_limits_worker"]


@pytest.fixture(scope="module")
def size(bench):
    return bench.Size(fit_steps=2, start_samples=64, policy_samples=4)


@pytest.fixture(scope="module")
def world(bench, size, tmp_path_factory):
    return bench.World(0, 16, size, tmp_path_factory.mktemp("world"))


def clauses() -> Counter[tuple[float, int]]:
    """Return the probability of each (value, words) of a clause, counted out by hand."""
    kinds: Counter[tuple[float, int]] = Counter()
    for weight, (degree, rate) in itertools.product(ADJECTIVES.values(), DEGREE_RATES.items()):
        value, words = weight * DEGREES.get(degree, 1.0), 4 + bool(degree)
        chance = rate / len(ADJECTIVES)
        kinds[value, words] += FORMS["was"] * (1 - NOT_RATE) * chance
        kinds[-0.5 * value, words + 1] += FORMS["was"] * NOT_RATE * chance
        kinds[value, words + 1] += FORMS["found"] * chance
    for weight in VERBS.values():
        kinds[weight, 4] += FORMS["verb"] / len(VERBS)
    for weight in NEGATED_VERBS.values():
        kinds[-0.5 * weight, 6] += FORMS["did not"] / len(NEGATED_VERBS)
    return kinds


def texts() -> Counter[tuple[float, int]]:
    """Return the probability of each (mean value, words) of a whole completion."""
    whole: Counter[tuple[float, int]] = Counter()
    sums: Counter[tuple[float, int]] = Counter({(0.0, 1): 1.0})  # the last full stop
    for count in sorted(CLAUSE_COUNTS):
        longer: Counter[tuple[float, int]] = Counter()
        for (value, words), chance in sums.items():
            for (more, length), rate in clauses().items():
                for joint, likely in JOINTS.items() if count > 1 else [("", 1.0)]:
                    key = (round(value + more, 6), words + length + len(joint.split()))
                    longer[key] += chance * rate * likely
        sums = longer
        for (value, words), chance in sums.items():
            whole[round(value / count, 6), words] += CLAUSE_COUNTS[count] * chance
    return whole


def test_the_frontier_of_samples_is_that_of_the_grammar():
    """The best reward of any policy, by summing over the grammar instead of sampling it."""
    chances = texts()
    assert sum(chances.values()) == pytest.approx(1.0)
    rewards = torch.tensor([value - 0.05 * words for value, words in chances], dtype=torch.float64)
    logp = torch.tensor([*chances.values()], dtype=torch.float64).log()
    optimum = (logp + rewards / 1.2).softmax(0)
    best = float(optimum @ rewards)
    kl = float(optimum @ (optimum.log() - logp))
    rng = random.Random(0)
    prompt = make_prompt("film", HELD_OUT_NAMES[0])
    drawn = [true_reward(sample_completion(prompt, rng)) for _ in range(8192)]
    point = frontier_at(torch.tensor([drawn]), kl)
    assert 1.2 < kl < 1.8
    assert point.reward == pytest.approx(best, abs=0.1)
    assert point.beta == pytest.approx(1.2, abs=0.06)


@pytest.mark.parametrize("flips", [0.0, 0.3])
def test_labels_are_right_as_often_as_the_recipe_says(worker, world, flips):
    recipe = worker.Recipe(labels="better", flips=flips)
    rows = worker.draw_rows(world, recipe, 2000, None, 0)
    right = [true_reward(row["chosen"]) >= true_reward(row["rejected"]) for row in rows]
    assert sum(right) / len(right) == pytest.approx(1 - flips, abs=0.03)
    assert {row["prompt"].split()[4] for row in rows}.isdisjoint(HELD_OUT_NAMES)


def test_a_label_may_be_the_probability_itself(worker, world):
    recipe = worker.Recipe(labels="probability")
    for row in worker.draw_rows(world, recipe, 20, None, 0):
        gap = true_reward(row["chosen"]) - true_reward(row["rejected"])
        assert row["preference_probability"] == pytest.approx(1 / (1 + math.exp(-gap)))


def test_a_half_keeps_one_completion_with_its_label(worker, world):
    pairs = worker.draw_rows(world, worker.Recipe(), 400, None, 3)
    halves = [worker.half(row, random.Random(number)) for number, row in enumerate(pairs)]
    for row, half in zip(pairs, halves, strict=True):
        assert half["completion"] == row["chosen" if half["label"] else "rejected"]
    assert 0.4 < sum(half["label"] for half in halves) / len(halves) < 0.6


def test_texts_of_the_optimum_are_worth_more(worker, world):
    asked = world.prompts * 40
    best = worker.draw_texts(world, "optimum", asked, world.start, random.Random(0))
    plain = worker.draw_texts(world, "start", asked, world.start, random.Random(0))
    # Weights exp(r) move a mean up by about the variance of r.
    rewards = torch.tensor([[true_reward(text) for text in texts] for texts in (best, plain)])
    assert rewards[0].mean() > rewards[1].mean() + 0.3 * rewards[1].var()


def test_the_mean_over_starts_has_students_interval(bench):
    report = sys.modules["toy_limits_report"]
    # With 2 degrees of freedom the distribution function is known: 1/2 + t / (2 sqrt(2 + t^2)).
    t = (report.over_seeds([1.0, 2.0, 3.0]).high - 2) * math.sqrt(3)
    assert 0.5 + t / (2 * math.sqrt(2 + t * t)) == pytest.approx(0.975, abs=1e-4)
    assert math.isnan(report.over_seeds([1.0]).low)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "policy", "rounds": 2},
        {"loss": "sft", "options": {}, "source": "optimum", "shape": "texts"},
        pytest.param({"loss": "kto", "shape": "halves"}, marks=SLOW),
        pytest.param({"loss": "orpo", "options": {}, "source": "policy", "rounds": 2}, marks=SLOW),
        pytest.param({"lora_rank": 2}, marks=SLOW),  # imports peft
    ],
    ids=["rounds", "texts", "halves", "orpo", "lora"],
)
def test_a_run_is_done_once(worker, size, changes, tmp_path):
    options = {"beta": 0.5, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    recipe = worker.Recipe(**{"options": options, "pairs": 16, "hidden_size": 16, **changes})
    found = worker.run(recipe, 0, size, tmp_path)
    assert found["kl"][0] > 0
    again = worker.run(recipe, 0, size, tmp_path)
    assert json.loads(json.dumps(found)) == again


def made_up_run(seed: int, too_far: bool) -> dict[str, object]:
    """Return what a run might have found."""
    return {
        "share": None if too_far else [0.7 + 0.01 * seed, 0.6, 0.8, 100],
        "reward": [1.0, 0.9, 1.1, 100],
        "kl": [1.0 + seed, 0.9, 1.1, 100],
        "best_reward": None if too_far else 1.5,
        "grammatical": 0.9,
        "start_reward": -0.7,
        "start_temperatures": {"0.0": -0.5, "0.7": -0.6},
        "temperatures": {"0.0": 2.0, "0.7": 1.5},
        "accuracy": 0.8,
        "cpu_seconds": 3.0,
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_study_has_its_table_and_its_picture(bench, seeds, tmp_path):
    report, studies = sys.modules["toy_limits_report"], [*bench.STUDIES.values()]
    found = {
        study.name: {
            label: [made_up_run(seed, number == 1) for seed in range(seeds)]
            for number, label in enumerate(study.recipes)
        }
        for study in studies
    }
    found["noise"].popitem()
    found["noise"]["robust, + 30% flipped"] = []  # a run that failed
    curve = {"kls": [0.1, 1.0], "gains": [[1.0, 0.9, 1.1], [2.0, 1.9, 2.1]], "start": -0.7}
    frontiers = {str(seed): curve for seed in range(seeds)}
    record = {"commit": "0" * 40, "date": "today", "device": "a processor", "note": ""}
    report.write_results(tmp_path, studies, found, frontiers, record)
    text = (tmp_path / "toy_limits.md").read_text()
    labels = {label for study in studies for label in study.recipes}
    assert all(f"\n| {label} | " in text for label in labels)
    assert "| robust, + 30% flipped | not done |" in text
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"toy_limits.png", "toy_limits_losses.png", "toy_limits_studies.png"}
    saved = json.loads((tmp_path / "toy_limits.json").read_text())
    assert saved["studies"]["beta"]["rows"].keys() == bench.STUDIES["beta"].recipes.keys()


@pytest.mark.slow
def test_the_script_goes_on_where_it_was_stopped(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "toy_limits.py"), "--quick", "--allow-dirty"]
    command += ["--seeds", "1", "--jobs", "1", "--studies", "unpaired"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    numbers = tmp_path / "out" / "toy_limits.json"
    rows = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        rows.append(json.loads(numbers.read_text())["studies"]["unpaired"]["rows"])
        for path in (tmp_path / "work" / "quick" / "runs").glob("*.json"):
            path.write_text(path.read_text().replace('"seed": 0', '"seed": "kept"'))
    assert [row["runs"][0]["seed"] for row in rows[0].values()] == [0] * 5
    assert [row["runs"][0]["seed"] for row in rows[1].values()] == ["kept"] * 5
