"""What the folders of the runs show."""

import json
import math
from dataclasses import replace

import pytest
import torch

from prefopt.compare.budget import Budget
from prefopt.compare.collect import (
    data_baselines,
    method_results,
    paired_tests,
    pooled,
    run_curves,
    run_diagnoses,
    run_records,
    run_samples,
    run_win_rates,
)
from prefopt.compare.methods import Method
from prefopt.compare.plan import Run
from prefopt.compare.tasks import Stage, Task
from prefopt.evaluation import Estimate
from prefopt.evaluation.diagnostics import DIAGNOSTICS

# Of the speed of a run, and of the evaluations in it.
OF_MACHINE = (
    *("timing_s/step", "tokens_per_second", "mfu", "eval_runtime"),
    "eval_model_preparation_time",
)


@pytest.fixture
def put(tmp_path):
    """Write a run's folder, as its commands do."""

    def write(name, seed, margins, state="done", **evaluation):
        folder = tmp_path / f"{name}-{seed}"
        output = folder / "evaluation"
        output.mkdir(parents=True)
        (folder / "model").mkdir()
        share = sum(one > 0 for one in margins) / len(margins)
        found = {"metrics": {"accuracy": [share, share - 0.1, share + 0.1, len(margins)]}}
        (output / "evaluation.json").write_text(json.dumps({**found, **evaluation}))
        fixed = {"rejected_reward": 0, "chosen_tokens": 5, "rejected_tokens": 4}
        rows = [{"row": i, "chosen_reward": m, **fixed} for i, m in enumerate(margins)]
        (output / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        history = [
            {"step": 5, "loss": 0.7, "epoch": 0.1, "num_tokens": 50.0, "rewards/margins": 0.2},
            {"step": 9, "loss": 0.6, "num_tokens": 90.0, "note": "x", "rewards/margins": 0.8},
        ]
        for entry in history:
            entry |= dict.fromkeys(OF_MACHINE, 1.0)
        text = json.dumps({"log_history": history})
        (folder / "model" / "trainer_state.json").write_text(text)
        done = {"train": "t"} | ({"evaluation": "e"} if state == "done" else {})
        seconds = {"train": 2.5, "evaluation": 1.0}
        (folder / "state.json").write_text(
            json.dumps({"state": state, "done": done, "seconds": seconds, "error": None})
        )
        stages = (
            Stage("train", ("prefopt", "train", "--config", "a.yaml"), "t", "model"),
            Stage("evaluation", ("prefopt", "eval"), "e", "evaluation"),
        )
        kind = "start" if name == "start" else "loss"
        method = Method(name, {} if kind == "start" else {"loss_type": name, "beta": 0.5}, kind)
        budget = Budget(9, 18, 90.0, 0.5 if name == "sft" else 1.0)
        return Run(method, seed, Task(folder.name, folder, stages), budget)

    return write


def test_seeds_widen_the_interval_and_their_numbers_are_kept(put):
    runs = [
        put("dpo", 0, [1, 1, -1, 1]),
        put("dpo", 1, [1, -1, -1, 1]),
        put("ipo", 0, [1], "failed"),
    ]
    (result,) = method_results(runs)
    assert (result.name, result.loss, result.options) == ("dpo", "dpo", {"beta": 0.5})
    assert result.by_seed == {"accuracy": (0.75, 0.5)}
    # 0.1² of the rows, and 1.96² times the variance of the mean of 0.75 and 0.5: 0.03125 / 2.
    spread = math.sqrt(0.1**2 + 1.959964**2 * 0.03125 / 2)
    expected = Estimate(0.625, 0.625 - spread, 0.625 + spread, 4)
    assert result.metrics["accuracy"] == pytest.approx(expected)


def test_an_interval_that_is_not_symmetric_stays_so():
    low_end = pooled([Estimate(0.02, 0.01, 0.06, 90), Estimate(0.02, 0.01, 0.06, 90)])
    assert low_end == pytest.approx(Estimate(0.02, 0.01, 0.06, 90))


def test_the_interval_of_a_share_ends_at_0_and_1():
    seeds = [Estimate(0.9, 0.8, 1.0, 90), Estimate(1.0, 0.95, 1.0, 90)]
    assert pooled(seeds).high > 1
    assert pooled(seeds, is_share=True) == pooled(seeds)._replace(high=1.0)


def test_methods_are_tested_on_the_same_rows(put):
    better, worse = [1.0] * 90 + [-1.0] * 10, [1.0] * 60 + [-1.0] * 40
    runs = [
        put("start", 0, worse),
        put("dpo", 0, better),
        put("ipo", 0, worse),
        put("kto", 0, better),
    ]
    tests = {(test.first, test.second): test for test in paired_tests(runs)}
    assert list(tests) == [("dpo", "ipo"), ("dpo", "kto"), ("ipo", "kto")]
    apart = tests["dpo", "ipo"]
    assert apart.difference.value == pytest.approx(0.3)
    assert apart.p == pytest.approx(2 * 0.5**30)  # thirty rows, all one way
    assert apart.p_adjusted == pytest.approx(3 * apart.p)
    assert (tests["dpo", "kto"].p, tests["dpo", "kto"].difference.value) == (1, 0)


def test_methods_whose_seeds_differ_as_much_as_they_do_are_not_told_apart(put):
    half = lambda share: [1.0] * round(100 * share) + [-1.0] * round(100 - 100 * share)  # noqa: E731
    runs = [put("dpo", 0, half(0.9)), put("dpo", 1, half(0.6)), put("ipo", 0, half(0.65))]
    runs.append(put("ipo", 1, half(0.55)))
    (test,) = paired_tests(runs)
    rows = torch.tensor([[0.9, 0.6], [0.65, 0.55]])
    spread = rows.var(1).sum().item() / 2
    assert test.p > math.erfc(0.15 / math.sqrt(spread) / math.sqrt(2)) > 0.05
    assert test.difference.low < 0 < test.difference.high


def test_records_tell_what_became_of_runs(put):
    done, sft, failed = put("dpo", 0, [1]), put("sft", 0, [1]), put("ipo", 3, [1], "failed")
    records = run_records([done, sft, failed])
    assert [(r.state, r.tokens, r.seconds) for r in records] == [
        ("done", 90, 3.5),
        ("done", 45, 3.5),
        ("failed", 90, 3.5),
    ]
    assert records[0].command == "python -m prefopt train --config a.yaml"


def test_curves_are_what_was_logged(put):
    curves = {curve.metric: curve for curve in run_curves([put("dpo", 7, [1])])}
    assert set(curves) == {"loss", "rewards/margins"}  # clocks and counts are none
    assert (curves["loss"].steps, curves["loss"].values) == ((5, 9), (0.7, 0.6))
    assert (curves["loss"].method, curves["loss"].seed) == ("dpo", 7)


def test_win_rates_are_pooled_over_seeds(put):
    rate = {"against": "start", "temperature": 0.0, "rate": [0.6, 0.5, 0.7, 9]}
    other = rate | {"rate": [0.8, 0.7, 0.9, 9], "length_controlled": [0.5, 0.4, 0.6, 9]}
    runs = [put("dpo", 0, [1], win_rates=[rate]), put("dpo", 1, [1], win_rates=[other])]
    (found,) = run_win_rates(runs)
    assert (found.method, found.against, found.temperature) == ("dpo", "start", 0.0)
    assert found.rate.value == pytest.approx(0.7)
    assert found.length_controlled is None
    (alone,) = run_win_rates(runs[1:])
    assert alone.length_controlled == Estimate(0.5, 0.4, 0.6, 9)


def test_samples_stand_side_by_side_with_the_answers_of_the_data(put):
    runs = [put("dpo", 0, [1]), put("dpo", 1, [1]), put("ipo", 0, [1])]
    for run in runs:
        rows = [
            {"row": i, "prompt": f"p{i}", "completion": f"{run.task.name} {i} {k}", "tokens": 3}
            for i in range(3)
            for k in range(4)
        ]
        of_data = {"row": 0, "prompt": "p0", "completion": "yes", "tokens": 1, "method": "chosen"}
        rows = [of_data, *({**row, "method": None} for row in rows)]  # as `prefopt eval` does
        path = run.task.folder / "evaluation" / "samples.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = [{"role": "assistant", "content": "fine"}]
    held_out = [
        {"prompt": "p0", "chosen": " yes", "rejected": " no"},
        {"prompt": [{"role": "user", "content": "p1"}], "chosen": message, "rejected": message},
    ]
    samples = run_samples(runs, held_out, most=2)
    assert [(one.method, one.prompt, one.completion) for one in samples] == [
        *[("dpo", f"p{i}", f"dpo-0 {i} {k}") for i in range(2) for k in range(2)],
        *[("ipo", f"p{i}", f"ipo-0 {i} {k}") for i in range(2) for k in range(2)],
        ("chosen", "p0", " yes"),
        ("chosen", "p1", "assistant: fine"),
    ]


def test_a_diagnosis_is_that_of_the_worst_seed(put):
    kl = {"accuracy": [0.9, 0.8, 1, 9], "kl": [1.0, 0.9, 1.1, 9], "reward": [2.0, 1.9, 2.1, 9]}
    fallen = kl | {"reward": [0.0, -0.1, 0.1, 9]}
    runs = [put("start", 0, [0.5], metrics=kl), put("dpo", 0, [1, 2], metrics=kl)]
    runs.append(put("dpo", 1, [1, 2], metrics=fallen))
    found = {one.name: one for one in run_diagnoses(runs)}
    assert {one.method for one in found.values()} == {"dpo"}
    assert list(found) == list(DIAGNOSTICS)
    assert found["over-optimisation"].fires
    alone = {one.name: one for one in run_diagnoses(runs[:2])}
    assert not alone["over-optimisation"].fires


def test_rules_that_know_no_method_are_taken_from_any_run(put):
    rules = {"longer": [1, 1, 1, 1], "chosen_reward": [-0.3, -0.4, -0.2, 9]}
    runs = [
        put("ipo", 0, [1], "failed"),
        put("dpo", 0, [1], data_baselines=rules),
    ]
    assert data_baselines(runs) == {"longer": Estimate(1, 1, 1, 1)}  # a reward is no rule
    assert data_baselines(runs[:1]) == {}


def test_methods_are_compared_on_the_pairs_that_both_read_and_not_without_pairs(put):
    runs = [put("dpo", 0, [1, 1, 1, -1]), put("ipo", 0, [-1, -1, 1]), put("best", 0, [1, 1])]
    (runs[2].task.folder / "evaluation" / "pairs.jsonl").unlink()
    (test,) = paired_tests(runs)
    assert (test.first, test.second) == ("dpo", "ipo")
    assert test.difference.value == pytest.approx(3 / 3 - 1 / 3)
    assert test.difference.size == 3


def test_details_of_trl_are_no_curves_and_baselines_of_it_get_no_advice(put):
    run = put("rl", 0, [1, -1])
    names = ("loss", "kl", "reward", "rewards/score/mean", "rewards/score/std", "entropy")
    more = ("clip_ratio/low_min", "completions/mean_length", "completions/min_length")
    history = [{"step": step, **dict.fromkeys((*names, *more), 1.0)} for step in (1, 2)]
    text = json.dumps({"log_history": history})
    (run.task.folder / "model" / "trainer_state.json").write_text(text)
    assert {curve.metric for curve in run_curves([run])} == {
        *("loss", "rewards/score/mean", "entropy", "completions/mean_length")
    }
    rl = replace(run, method=Method("rl", {}, "rl"))
    assert run_diagnoses([rl]) == ()
    assert run_diagnoses([run]) != ()
