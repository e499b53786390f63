"""The toy experiment in small: what is measured, and the files it leaves."""

import json
from dataclasses import replace

import pytest
import torch

from prefopt.objective import parse_objective
from prefopt.toy.data import sample_pairs
from prefopt.toy.experiment import (
    METHODS,
    Experiment,
    ExperimentSize,
    MeasureCallback,
    PolicyEvaluator,
    checkpoint_steps,
)
from prefopt.toy.grammar import HELD_OUT_NAMES, prompts
from prefopt.toy.model import build_model, build_tokenizer
from prefopt.toy.reward import preference_probability

SIZE = ExperimentSize(fit_steps=2, pairs=12, held_out_pairs=6, steps=2, batch_size=4)
PAIRS = sample_pairs(6, seed=1, names=HELD_OUT_NAMES)
DPO = parse_objective("dpo")


@pytest.fixture(scope="module")
def evaluator():
    tokenizer = build_tokenizer()
    return PolicyEvaluator(build_model(tokenizer, hidden_size=16), tokenizer, PAIRS)


@pytest.mark.parametrize(
    ("steps", "checkpoints", "wanted"),
    [(100, 5, [4, 16, 36, 64, 100]), (3, 2, [1, 3]), (2, 6, [1, 2])],
)
def test_measurements_are_closer_at_first_and_the_last_step_is_one(steps, checkpoints, wanted):
    assert checkpoint_steps(steps, checkpoints) == wanted


def test_every_setting_is_of_a_loss_that_defines_rewards():
    assert [method.loss_type for method in Experiment([*METHODS], size=SIZE).methods] == [*METHODS]


@pytest.mark.parametrize(
    ("loss", "message"),
    [("sft", "'sft' has no held-out accuracy, since 'sft' defines no rewards"), ("dpoo", "dpoo")],
)
def test_a_loss_without_rewards_and_an_unknown_one_are_errors(loss, message):
    with pytest.raises(ValueError, match=message):
        Experiment([loss], size=SIZE)


def test_held_out_pairs_are_about_names_that_training_never_sees():
    experiment = Experiment(["dpo"], size=SIZE)
    names = [
        {row["prompt"].split()[4] for row in rows}
        for rows in (experiment.train_pairs, experiment.held_out_pairs)
    ]
    assert not names[0] & set(HELD_OUT_NAMES)
    assert names[1] <= set(HELD_OUT_NAMES)


def test_the_reference_measured_against_itself_has_no_margin_and_no_kl(evaluator):
    found = evaluator.measure(evaluator.reference, DPO, step=5, samples_per_prompt=2)
    assert (found.step, found.margin, found.accuracy.value) == (5, 0.0, 0.5)  # all pairs tie
    assert found.kl.value == pytest.approx(0, abs=1e-6)
    assert found.reward.size == 2 * len(prompts(HELD_OUT_NAMES))
    assert not evaluator.reference.training


def test_another_policy_has_a_kl_and_keeps_its_training_mode(evaluator):
    policy = build_model(evaluator.tokenizer, hidden_size=16, seed=1).train()
    found = evaluator.measure(policy, DPO, samples_per_prompt=2)
    assert found.kl.value > 0
    assert found.margin != 0
    assert policy.training


def test_the_best_accuracy_is_that_of_the_noisy_labels(evaluator):
    gaps = [abs(row["reward_chosen"] - row["reward_rejected"]) for row in PAIRS]
    wanted = sum(preference_probability(gap, 0.0) for gap in gaps) / len(gaps)
    assert evaluator.best_accuracy == pytest.approx(wanted)
    assert 0.5 <= wanted <= 1


def test_the_frontier_starts_at_the_reference_and_rises(evaluator):
    counts = []
    points = evaluator.frontier(16, min_effective_samples=2, on_samples=counts.append)
    assert counts == [16] * len(prompts(HELD_OUT_NAMES))
    assert points[0].kl == 0
    assert [p.kl for p in points] == sorted(p.kl for p in points)
    assert [p.reward for p in points] == sorted(p.reward for p in points)


def test_the_callback_measures_after_its_steps_and_counts_all():
    calls, steps = [], []

    class Counts:
        def measure(self, policy, objective, *, step, samples_per_prompt):
            calls.append((step, samples_per_prompt))
            return step

    measure = MeasureCallback(Counts(), DPO, [2, 4], 10, lambda: steps.append(1))
    measure.measure(None, 0)
    for step in (1, 2, 3, 4):
        state = type("State", (), {"global_step": step})
        measure.on_step_end(None, state, None, model=None)
    assert calls == [(0, 40), (2, 10), (4, 40)]  # first and last get four times the samples
    assert measure.path == [0, 2, 4]
    assert len(steps) == 4


def test_an_experiment_writes_its_start_and_its_data(tmp_path):
    experiment = Experiment(["dpo"], size=replace(SIZE, fit_steps=1))
    before = experiment.start.lm_head.weight.clone()
    experiment.fit()
    assert not torch.equal(experiment.start.lm_head.weight, before)
    experiment.save(tmp_path)
    lines = {
        name: (tmp_path / f"{name}.jsonl").read_text().splitlines()
        for name in ("pairs", "held_out", "unpaired")
    }
    assert [len(rows) for rows in lines.values()] == [12, 6, 12]
    assert json.loads(lines["pairs"][0]) == experiment.train_pairs[0]
    assert {"prompt", "completion", "label"} <= set(json.loads(lines["unpaired"][0]))
    assert (tmp_path / "start" / "config.json").exists()
