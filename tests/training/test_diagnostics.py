"""Diagnostics of real runs: each has one in which it fires and one in which it is silent."""

import functools

import numpy as np
import pytest
import torch

from prefopt.training.diagnosis import DIAGNOSTICS
from prefopt.training.diagnostics import DiagnosticsCallback
from prefopt.training.history import (
    diagnostics_of_curves,
    diagnostics_of_history,
    displacement_without_reference,
)
from tests.engine.trees import plain_logps
from tests.models import tiny_model, tiny_rows
from tests.runs import trainer
from tests.test_trainer_divergences import examples
from tests.toy_runs import RewardOfSamples, longer_first, pairs, run


def healthy(folder):
    """Three epochs, with a beta that holds the policy near its start."""
    options = {"learning_rate": 1.2e-3, "beta": 1.0, "max_steps": 60, "eval_steps": 20}
    options["lr_scheduler_type"] = "linear"
    return run(folder, pairs(640), callbacks=[RewardOfSamples()], **options)


def by_heart(folder):
    """Fifty epochs of few pairs at a high rate."""
    options = {"learning_rate": 3e-3, "max_steps": 150, "eval_steps": 25}
    return run(folder, pairs(96), **options)


def unbound(folder):
    """A beta and a rate that leave the policy free to go anywhere."""
    options = {"learning_rate": 3e-3, "beta": 0.02, "max_steps": 40, "eval_steps": 20}
    return run(folder, pairs(640), **options)


def of_length(folder):
    """Pairs of which most were chosen by length."""
    rows = longer_first(pairs(640))[:350] + pairs(250, seed=3)
    options = {"learning_rate": 1e-3, "max_steps": 40, "eval_steps": 20}
    return run(folder, rows, **options)


def proxy(folder):
    """Pairs by true reward, and after 20 steps by length, which stands for it badly."""
    rows = pairs(640) + longer_first(pairs(640, seed=5))
    options = {"learning_rate": 3e-3, "max_steps": 38, "eval_steps": 6}
    options["train_sampling_strategy"] = "sequential"
    return run(folder, rows, callbacks=[RewardOfSamples()], **options)


@functools.cache
def _ran(make, folder):
    return make(folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return what trains one of the runs above, once."""
    base = tmp_path_factory.getbasetemp()
    return lambda make: _ran(make, base / make.__name__)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        pytest.param(
            by_heart,
            ("likelihood displacement", "saturated pairs", "over-fitting"),
            marks=pytest.mark.slow,
        ),
        (unbound, ("likelihood displacement", "length bias of the reward", "KL drift")),
        (of_length, ("length bias of the data", "length bias of the reward")),
        pytest.param(proxy, ("over-optimisation",), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_wrong_is_told_what_is_wrong(ran, make, names):
    done = ran(make)
    found = {one.name: one for one in diagnostics_of_history(done.history) if one.fires}
    assert set(names) <= set(found)
    for name in names:
        (line,) = (line for line in done.said if f": {name}: " in line)  # said once
        assert line.startswith("prefopt: step ")


def test_a_healthy_run_is_told_nothing(ran):
    done = ran(healthy)
    found = diagnostics_of_history(done.history)
    assert [one.name for one in found] == list(DIAGNOSTICS)
    assert [one.text for one in found if one.fires] == []
    assert all(one.value is not None for one in found), "each was measured"
    accuracies = [e["eval_rewards/accuracies"] for e in done.history if "eval_loss" in e]
    assert accuracies[-1] > 0.65  # it has learnt something
    assert done.said == []


def only(history, *names):
    """Return what was logged of training, and these metrics of evaluations."""
    return [
        {k: v for k, v in entry.items() if not k.startswith("eval_") or k.startswith(names)}
        for entry in history
    ]


@pytest.mark.slow
@pytest.mark.parametrize("names", [("eval_reward_", "eval_reward"), ("eval_diag", "eval_loss")])
def test_over_optimisation_shows_in_held_out_pairs_and_in_the_true_reward(ran, names):
    """Either alone is enough, and neither fires in a healthy run."""
    optimised, _ = diagnostics_of_curves(only(ran(proxy).history, *names))
    assert optimised.fires
    assert ("reward of samples" in optimised.text) == (names[1] == "eval_reward")
    fine, _ = diagnostics_of_curves(only(ran(healthy).history, *names))
    assert not fine.fires
    assert fine.value is not None


def test_a_run_without_reference_shows_displacement_by_its_logs(tmp_path):
    options = {"loss_type": "simpo", "beta": None, "logging_steps": 1, "eval_strategy": "no"}
    done = run(tmp_path, pairs(640), learning_rate=2e-3, max_steps=40, **options)
    found = displacement_without_reference(done.history)
    assert found is not None
    logged = [entry["logps/chosen"] for entry in done.history if "loss" in entry]
    assert found.value == pytest.approx(np.mean(logged[-10:]) - np.mean(logged[:10]))
    assert found.fires
    assert diagnostics_of_history(done.history)[0] == found
    # At a rate at which nothing moves, what is left is the noise of rows.
    still = run(tmp_path, pairs(640), learning_rate=1e-7, max_steps=40, **options)
    found = displacement_without_reference(still.history)
    assert found is not None
    assert not found.fires
    assert displacement_without_reference(still.history[:12]) is None


# The metrics --------------------------------------------------------------------------------------


@torch.no_grad()
def plain_statistics(model, rows, beta):
    """Statistics by the model's own forward pass of each text, and numpy."""
    model.eval()
    texts = examples(rows)
    logps, ref_logps = (
        plain_logps(one, texts).double().numpy().reshape(-1, 2)
        for one in (model, tiny_model("llama"))
    )
    gaps = np.array([len(e.completion_ids[0]) - len(e.completion_ids[1]) for e in texts], float)
    ratios = logps - ref_logps
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    return {
        "chosen_log_ratio": ratios[:, 0].mean(),
        "chosen_log_ratio_std": ratios[:, 0].std(ddof=1),
        "kept_mass": np.exp(np.minimum(ratios, 0)).mean(),
        "saturated_pairs": (1 / (1 + np.exp(margins)) < 0.01).mean(),
        "loss_standard_error": np.log1p(np.exp(-margins)).std(ddof=1) / len(gaps) ** 0.5,
        "reward_length_correlation": (margins @ gaps)
        / np.sqrt((margins @ margins) * (gaps @ gaps)),
        "reward_label_correlation": margins.mean() / np.sqrt((margins**2).mean()),
        "data_length_correlation": gaps.mean() / np.sqrt((gaps**2).mean()),
        "longer_chosen": np.heaviside(gaps, 0.5).mean(),
        "pair_accuracy": (margins > 0).mean(),
        "pairs": len(gaps),
        "chosen_count": len(gaps),
    }


def test_metrics_are_those_of_the_models_own_forward_pass(tmp_path):
    rows, held_out = tiny_rows(16), tiny_rows(24, seed=1)
    made = trainer(tmp_path, rows, eval_dataset=held_out, diagnostics=True, beta=2.0)
    made.train()
    found = made.evaluate()
    wanted = plain_statistics(made.model, held_out, 2.0)
    assert 0 < wanted["saturated_pairs"] < 1
    for name, value in wanted.items():
        assert found[f"eval_diagnostics/{name}"] == pytest.approx(value, rel=1e-4), name


def logged(folder, **options):
    rows = tiny_rows(16)
    made = trainer(folder, rows, eval_dataset=rows, **options)
    made.train()
    weights = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    return weights, [*made.state.log_history, made.evaluate()]


def test_training_is_the_same_to_the_bit(tmp_path):
    weights, history = logged(tmp_path, diagnostics=True, log_throughput=False)
    wanted, without = logged(tmp_path, log_throughput=False)
    assert torch.equal(weights, wanted)
    for mine, its in zip(history, without, strict=True):
        assert any("diagnostics/" in name for name in mine) == ("train_loss" not in mine)
        assert not any("diagnostics/" in name for name in its)
        for name, value in its.items():
            assert mine[name] == value or "second" in name or "runtime" in name, name


def test_metrics_do_not_depend_on_micro_batches(tmp_path):
    size = "per_device_train_batch_size"
    _, whole = logged(tmp_path, diagnostics=True, **{size: 8})
    parts = {size: 1, "gradient_accumulation_steps": 8, "per_device_eval_batch_size": 1}
    _, cut = logged(tmp_path, diagnostics=True, **parts)
    for mine, wanted in zip(
        cut[1:], whole[1:], strict=True
    ):  # at first margins are rounding errors
        for name in wanted:
            if "diagnostics/" in name:
                assert mine[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-5), name


def test_it_is_switched_on_by_one_field_and_speaks_in_the_main_process(tmp_path, capfd):
    made = trainer(tmp_path, tiny_rows(16), max_steps=1)
    callbacks = made.callback_handler.callbacks
    assert not any(isinstance(one, DiagnosticsCallback) for one in callbacks)
    options = {"diagnostics": True, "loss_type": "hinge", "beta": 5.0, "max_steps": 12}
    made = trainer(tmp_path, tiny_rows(96), per_device_train_batch_size=32, **options)
    made.train()
    said = capfd.readouterr().err
    assert said.count("saturated pairs: ") == 1
    assert "teach nothing any more" in said
    made.train()  # another run speaks again
    assert capfd.readouterr().err.count("saturated pairs: ") == 1
