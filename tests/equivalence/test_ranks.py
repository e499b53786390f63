"""Two processes with batches of 4 train as one with a batch of 8."""

import json

import numpy as np
import pytest

from prefopt.training.throughput import is_of_machine
from tests.conftest import ROOT
from tests.processes import run_script


def run(script, arguments, processes):
    done = run_script(str(ROOT / "tests/equivalence" / script), *arguments, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]


# Each is trained by one process and by two, all of them in one run: starting costs the most.
CASES = {
    "sum": {"loss_type": "dpo + 0.3*sft"},
    "kto": {"loss_type": "kto", "kind": "unpaired"},
    "rankings": {"loss_type": "dpo", "kind": "ranked"},
    "batch-dependent": {"loss_type": "aot"},
    "running mean of log-ratios": {"loss_type": "bco"},
    "running mean of margins": {"loss_type": "beta_dpo"},
    "live reference": {"loss_type": "tdpo", "other_reference": True},
    "moving reference": {
        "loss_type": "tdpo + 0.3*dpo",
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": 0.5,
    },
    "divergence, lengths and margins": {
        "loss_type": "dpo",
        "other_reference": True,
        "columns": ["margin"],
        "f_divergence_type": "js_divergence",
        "length_normalize": True,
        "margin_scale": 0.7,
    },
    "tails, schedule and WPO": {
        "loss_type": "ipo",
        "other_reference": True,
        "columns": ["weight"],
        "ld_alpha": 0.3,
        "beta_schedule": "linear",
        "beta_final": 0.5,
        "use_weighting": True,
    },
    "KL estimate per token": {
        "loss_type": "kto",
        "kind": "unpaired",
        "other_reference": True,
        "length_normalize": True,
    },
    "running means under options": {
        "loss_type": "bco_pair + beta_dpo",
        "other_reference": True,
        "f_divergence_type": "js_divergence",
        "length_normalize": True,
        "ld_alpha": 0.3,
    },
    "options of a batch-dependent loss": {
        "loss_type": "aot_unpaired",
        "other_reference": True,
        "columns": ["weight"],
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 0.8,
        "ld_alpha": 0.3,
        "beta_schedule": "cosine",
        "beta_final": 0.5,
    },
}


# Rows that do not fill the last pass of all processes, or not one: 8 rows make a step.
EPOCHS = {"max_steps": -1, "num_train_epochs": 2, "logging_steps": 1}
UNEVEN = {
    "29 rows": {"loss_type": "dpo", "count": 29, "diagnostics": True},
    "29 rows, accumulated": {"loss_type": "dpo", "count": 29, "gradient_accumulation_steps": 2},
    "17 rows: one process has none": {
        "loss_type": "dpo + 0.3*sft",
        "columns": ["weight"],
        "count": 17,
        "evaluated": 1,
        "diagnostics": True,
    },
    "one row": {"loss_type": "dpo", "count": 1, "gradient_accumulation_steps": 2, "evaluated": 5},
    "kto": {"loss_type": "kto", "kind": "unpaired", "count": 17},
    "kto, accumulated": {
        "loss_type": "kto",
        "kind": "unpaired",
        "count": 21,
        "gradient_accumulation_steps": 2,
    },
    "rankings": {"loss_type": "infonca", "kind": "ranked", "count": 17, "evaluated": 1},
    "batch-dependent": {"loss_type": "aot", "count": 25},
    "running mean": {"loss_type": "bco", "count": 25, "log_token_metrics": True},
    "live reference": {"loss_type": "tdpo", "other_reference": True, "count": 9},
    "padded": {"loss_type": "kto", "kind": "unpaired", "layout": "padded", "count": 9},
    "parts": {"loss_type": "kto", "kind": "unpaired", "count": 25, "max_tokens_per_batch": 40},
    "rest left out": {"loss_type": "dpo", "count": 29, "dataloader_drop_last": True},
    "several times": {"loss_type": "dpo", "count": 13, "num_train_epochs": 3},
    "stream": {"loss_type": "kto", "kind": "unpaired", "count": 17, "streamed": True}
    | {"max_steps": 5},
    "workers": {"loss_type": "dpo", "count": 17, "dataloader_num_workers": 1},
}


def train(folder, cases, processes):
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    run("run_ranks.py", [str(folder)], processes)
    results = json.loads((folder / "results.json").read_text())
    assert {found["processes"] for found in results.values()} == {processes}
    return results


@pytest.fixture(scope="module")
def by_one_and_by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    cases = {name: {"batch_size": 8} | case for name, case in CASES.items()}
    cases |= {f"uneven, {name}": {"batch_size": 8} | EPOCHS | it for name, it in UNEVEN.items()}
    experts = {"loss_type": "dpo", "batch_size": 8, "architecture": "qwen3_moe"}
    experts |= EPOCHS | {"count": 9}  # the second step of an epoch has one row
    return [
        train(
            folder / str(processes),
            cases | {"experts": experts | {"gradient_accumulation_steps": 2 // processes}},
            processes,
        )
        for processes in (1, 2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", UNEVEN)
def test_rows_that_do_not_fill_a_step_train_as_by_one_process(by_one_and_by_two, name):
    one, two = (results[f"uneven, {name}"] for results in by_one_and_by_two)
    assert len(one["steps"]) > 1
    assert two["weights"] == pytest.approx(one["weights"], rel=0, abs=1e-6)
    for mine, wanted in zip(two["steps"], one["steps"], strict=True):
        assert set(mine) == set(wanted)
        exact = ("epoch", "num_tokens", "step", "lengths/chosen")
        assert [mine.get(metric) for metric in exact] == [wanted.get(metric) for metric in exact]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *(f"uneven, {name}" for name in UNEVEN)])
def test_two_processes_train_and_evaluate_as_one(by_one_and_by_two, name):
    one, two = (results[name] for results in by_one_and_by_two)
    if "other_reference" not in CASES.get(name, {}):
        # Before the first step policy and reference are one: margins are signs of rounding errors.
        for run in (one, two):
            for accuracy in ("rewards/accuracies", "diagnostics/pair_accuracy"):
                run["steps"][0].pop(accuracy, None)
    # Log-probs of some 30 nats are rounded to 2e-6; the KL estimate is a difference of such. So
    # are margins, and correlations of the first steps divide by margins of 1e-3.
    for mine, wanted in zip(two["steps"], one["steps"], strict=True):
        assert set(mine) == set(wanted)
        for metric, value in wanted.items():
            error = 1e-3 if metric.endswith("_correlation") else 1e-5
            assert mine[metric] == pytest.approx(value, rel=1e-4, abs=error), metric
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=1e-5)
    for metric, value in one["eval"].items():
        if not is_of_machine(metric):
            assert two["eval"][metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric
    # Each process evaluates every second row; the rewards come in the order of the rows.
    np.testing.assert_allclose(two["rewards"], one["rewards"], rtol=1e-4, atol=1e-5)
    assert two["labels"] == one["labels"]


@pytest.mark.slow
def test_a_load_balancing_loss_of_two_processes_is_that_of_two_micro_batches(by_one_and_by_two):
    in_turn, at_once = (results["experts"] for results in by_one_and_by_two)
    for mine, wanted in zip(at_once["steps"], in_turn["steps"], strict=True):
        for name in ("loss", "aux_loss", "grad_norm"):
            assert mine[name] == pytest.approx(wanted[name], rel=1e-4), name


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """What each process found: alone, and of two by whether they had a store together."""
    folder = tmp_path_factory.mktemp("stores")
    for processes in (1, 2):
        run("run_stores.py", [str(folder)], processes)
    return {
        name: [
            json.loads((folder / f"{processes}-{name}-{rank}.json").read_text())
            for rank in range(processes)
        ]
        for processes, name in ((1, "alone"), (2, "one"), (2, "own"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("which", ["one", "own"])
def test_two_processes_share_filling_and_each_has_a_complete_store(filled, which):
    """In one file, as on one node, or in a file each, as on two nodes."""
    (alone,), both = filled["alone"], filled[which]
    assert alone["scored"] == 24
    assert sorted(rank["scored"] for rank in both) == [12, 12]
    for rank in both:
        assert rank["fingerprint"] == alone["fingerprint"]
        assert (rank["again"], rank["computed"]) == (0, [24, 0])
        assert len(rank["values"]) == 24
        for mine, wanted in zip(rank["values"], alone["values"], strict=True):
            assert mine == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert both[0]["values"] == both[1]["values"]
