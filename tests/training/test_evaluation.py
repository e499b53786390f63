"""Evaluation of batches that were scored by hand."""

from itertools import pairwise

import pytest
import torch

from prefopt.objective import parse_objective
from prefopt.reference.processes import Processes
from prefopt.training.evaluation import Evaluator, check_best_metric
from prefopt.training.step import Scored, StepStatistics
from tests.models import tiny_rows
from tests.runs import trainer
from tests.training.test_step import LENGTHS, LOGPS, REF_LOGPS, FakeScorer, batch, scores

MISMATCHED = torch.tensor([6.0, 1.5, 3.0], dtype=torch.float64)


def evaluated(loss, sizes, processes=None, compute_metrics=None, keep_predictions=False):
    """Evaluate the pairs of ``LOGPS``, cut into batches of so many pairs."""
    objective, processes = parse_objective(loss), processes or Processes()
    statistics = StepStatistics(objective, FakeScorer(), processes)
    ends = torch.tensor([0, *sizes]).cumsum(0).mul(2).tolist()
    batches, known = [], {}
    for start, end in pairwise(ends):
        one = batch((end - start) // 2, LENGTHS[start:end])
        share = MISMATCHED * (end - start) / 4
        known[id(one)] = Scored(
            scores(LOGPS[start:end], LENGTHS[start:end]), REF_LOGPS[start:end], share
        )
        batches.append(one)
    evaluator = Evaluator(statistics)
    return evaluator.evaluate(
        batches, lambda one: known[id(one)], compute_metrics, keep_predictions
    )


@pytest.mark.parametrize("loss", ["dpo", "kto", "aot", "dpo + 0.5*sft"])
def test_metrics_do_not_depend_on_the_batches(loss):
    whole, cut = evaluated(loss, [2]), evaluated(loss, [1, 1])
    assert whole.metrics == pytest.approx(cut.metrics, rel=1e-6)
    assert whole.examples == cut.examples == 2


def test_values_are_those_of_the_formula():
    metrics = evaluated("dpo", [1, 1]).metrics
    # beta 0.1, margins 3 and 1.
    losses = -torch.nn.functional.logsigmoid(torch.tensor([0.3, 0.1]))
    assert metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
    assert metrics["rewards/margins"] == pytest.approx(0.2)
    assert evaluated("kto", [1, 1]).metrics["kl"] == pytest.approx(2.0)


def test_rewards_go_to_compute_metrics_in_the_order_of_the_rows():
    seen = []
    found = evaluated("dpo", [1, 1], compute_metrics=lambda given: seen.append(given) or {"x": 1.0})
    chosen, rejected = found.predictions
    assert chosen.tolist() == pytest.approx([0.1, 0.0])
    assert rejected.tolist() == pytest.approx([-0.2, -0.1])
    assert (found.labels, found.metrics["x"]) == (None, 1.0)
    assert seen[0].predictions is found.predictions
    of_unpaired = evaluated("kto", [2], compute_metrics=lambda given: {})
    assert of_unpaired.labels.tolist() == [True, False, True, False]
    assert len(of_unpaired.predictions) == 4


def test_predictions_are_kept_where_they_are_asked_for():
    assert evaluated("dpo", [1, 1]).predictions is None
    kept = evaluated("dpo", [1, 1], keep_predictions=True)
    given = evaluated("dpo", [1, 1], compute_metrics=lambda given: {})
    for mine, wanted in zip(kept.predictions, given.predictions, strict=True):
        assert mine.tolist() == wanted.tolist()
    assert evaluated("sft", [2], keep_predictions=True).predictions is None  # has no rewards


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_predictions_of_several_processes_come_in_the_order_of_the_rows(loss):
    """Every second row is the other process's; what that finds is what this one does, plus 10."""

    def gather(local):
        if not isinstance(local, tuple):
            return [local, local]
        values, rows = local
        return [local, (values + 10, rows + 1)]

    alone = evaluated(loss, [1, 1], keep_predictions=True)
    shares = Processes(0, 2, gather, lambda tensor: tensor * 2)
    both = evaluated(loss, [1, 1], shares, keep_predictions=True)
    found = both.predictions[0] if loss == "dpo" else both.predictions
    per_row = 1 if loss == "dpo" else 2
    own = (alone.predictions[0] if loss == "dpo" else alone.predictions).reshape(2, per_row)
    wanted = [value for row in own for part in (row, row + 10) for value in part]
    assert found.tolist() == pytest.approx(wanted)


def test_a_process_without_rows_takes_part():
    shares = Processes(1, 2, lambda value: [value, value], lambda tensor: tensor * 2)
    found = evaluated("kto", [], shares, compute_metrics=lambda given: {})
    assert (found.examples, found.predictions) == (0, None)
    assert found.metrics["kl"] == 0.0


@pytest.mark.parametrize("loss", ["dpo", "kto", "dpo + 0.1*sft"])
def test_every_metric_that_an_evaluation_makes_may_choose_the_best_model(loss, tmp_path):
    rows = tiny_rows(4, "unpaired" if loss == "kto" else "paired")
    made = trainer(
        tmp_path,
        rows,
        eval_dataset={"a": rows},
        loss_type=loss,
        log_token_metrics=True,
        eval_strategy="steps",
        eval_steps=1,
    )
    found = [name for name in made.evaluate() if name != "epoch"]
    assert len(found) > 10
    for name in found:
        made.args.metric_for_best_model = name
        check_best_metric(made.args, made.objective, made.eval_dataset, None)
    made.args.metric_for_best_model = "eval_loss"
    with pytest.raises(ValueError, match="did you mean 'eval_a_loss'"):
        check_best_metric(made.args, made.objective, made.eval_dataset, None)
    check_best_metric(made.args, made.objective, made.eval_dataset, lambda _: {"loss": 1.0})
