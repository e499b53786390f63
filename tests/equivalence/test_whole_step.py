"""Losses that depend on a whole optimiser step do not depend on how it is cut."""

import numpy as np
import pytest

from tests.equivalence.test_invariance import assert_same_training, run
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

WHOLE_STEP = ["aot", "aot_unpaired", "beta_dpo", "bco_pair", "dbaql", "bco", "aot + 0.2*sft"]


@pytest.mark.parametrize("loss", WHOLE_STEP)
def test_accumulation_changes_nothing(tmp_path, loss):
    rows = tiny_rows(16)
    whole, parts = (
        run(
            tmp_path / str(cut),
            rows,
            loss_type=loss,
            per_device_train_batch_size=8 // cut,
            gradient_accumulation_steps=cut,
        )
        for cut in (1, 4)
    )
    assert_same_training(parts, whole, tolerance=3e-5)


def test_a_limit_of_tokens_changes_nothing(tmp_path):
    rows = tiny_rows(16)
    options = {"loss_type": "aot", "per_device_train_batch_size": 8}
    whole = run(tmp_path / "whole", rows, **options)
    assert_same_training(run(tmp_path / "cut", rows, max_tokens_per_batch=50, **options), whole)


@pytest.mark.parametrize("per_token", [{}, {"length_normalize": True}])
def test_running_means_are_kept_in_checkpoints(tmp_path, per_token):
    rows = tiny_rows(16)
    options = {"loss_type": "bco", "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    options |= {"beta": 1.0, "learning_rate": 5e-2, "optim": "sgd"} | per_token
    whole = trainer(tmp_path / "whole", rows, **options)
    whole.train()
    resumed = trainer(tmp_path / "again", rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    wanted = [entry["loss"] for entry in steps(whole)][-1]
    assert [entry["loss"] for entry in steps(resumed)][-1] == pytest.approx(wanted, rel=1e-6)
    ((found,), (wanted,)) = (its._statistics._running.means() for its in (resumed, whole))
    assert abs(found["mean_log_ratio"]) > 1e-3
    for name, mean in wanted.items():
        assert float(found[name]) == pytest.approx(float(mean), rel=1e-5)


@pytest.mark.parametrize("loss", ["aot", "beta_dpo", "bco"])
def test_evaluation_does_not_depend_on_its_batch_size(tmp_path, loss):
    policy, rows, metrics = tiny_model("llama"), tiny_rows(11), []
    for batch_size in (1, 4, 16):
        evaluator = trainer(
            tmp_path / str(batch_size),
            tiny_rows(4, seed=1),
            model=policy,
            ref_model=tiny_model("llama", seed=5),
            eval_dataset=rows,
            loss_type=loss,
            per_device_eval_batch_size=batch_size,
        )
        metrics.append(evaluator.evaluate())
    for other in metrics[1:]:
        for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen"):
            assert other[name] == pytest.approx(metrics[0][name], rel=1e-5), name


def weights_of(trained):
    return np.concatenate([p.detach().numpy().ravel() for p in trained.model.parameters()])


@pytest.mark.parametrize("loss", ["dpo", "plackett_luce", "hinge"])
def test_a_weight_counts_as_often_as_it_says(tmp_path, loss):
    """A row of weight 2 beside one of weight 0 is as both rows being the first."""
    rows = tiny_rows(4)
    options = {"max_steps": 1, "optim": "sgd", "per_device_train_batch_size": 4}
    weighted = rows.add_column("weight", [2.0, 0.0, 1.0, 1.0])
    one = trainer(tmp_path / "weighted", weighted, loss_type=loss, **options)
    two = trainer(tmp_path / "repeated", rows.select([0, 0, 2, 3]), loss_type=loss, **options)
    for trained in (one, two):
        trained.train()
    np.testing.assert_allclose(weights_of(one), weights_of(two), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "kind"), [("kto", "unpaired"), ("sft", "paired")])
def test_rows_of_weight_0_teach_nothing(tmp_path, loss, kind):
    rows = tiny_rows(8, kind).add_column("weight", [0.0] * 4 + [1.0] * 4)
    once = {"max_steps": 1, "optim": "sgd", "train_sampling_strategy": "sequential"}
    trained = trainer(tmp_path, rows, loss_type=loss, **once)
    before = weights_of(trained)
    trained.train()
    np.testing.assert_array_equal(weights_of(trained), before)
