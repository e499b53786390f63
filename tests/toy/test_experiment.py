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
    Method,
    PolicyEvaluator,
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


def test_a_method_is_measured_at_the_start_and_at_its_checkpoints(tmp_path):
    experiment = Experiment(["dpo"], size=replace(SIZE, fit_steps=1, samples_per_prompt=1))
    experiment.fit()
    policy = build_model(experiment.tokenizer, seed=3)
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-x"):
        policy.save_pretrained(tmp_path / name)
    method = Method("dpo", {"beta": 0.5, "learning_rate": 1.0, "loss_kwargs": {}})
    run = experiment.measure(method, tmp_path, seconds=2.0)
    assert (run.name, run.seconds) == ("dpo", 2.0)
    assert [point.step for point in run.path] == [0, 1, 2]
    # First and last get four times the samples, and both checkpoints are one policy here.
    names = len(prompts(HELD_OUT_NAMES))
    assert [point.reward.size for point in run.path] == [4 * names, names, 4 * names]
    assert run.path[0].margin == 0 != run.path[1].margin == run.path[2].margin
    assert len(run.samples) == names


def test_runs_are_told_to_keep_what_is_measured():
    options = Experiment(["dpo"], size=replace(SIZE, steps=50, checkpoints=4)).run_options
    assert (options["max_steps"], options["save_steps"]) == (50, 12)
    assert options["save_total_limit"] is None


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
