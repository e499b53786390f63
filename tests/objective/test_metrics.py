"""Metrics are means over examples, however they came in batches."""

import dataclasses

import pytest
import torch

from prefopt.losses import LossOutput
from prefopt.objective import parse_objective
from prefopt.objective.inputs import Completions, term_counts, term_output
from prefopt.objective.metrics import (
    MetricSums,
    add_batch_metrics,
    add_log_ratios,
    batch_rewards,
    with_margins,
)
from tests.indices import make_index


def test_means_weigh_every_value_alike():
    sums = MetricSums()
    sums.add_values("x", torch.tensor([1.0, 2.0, 3.0]))
    sums.add_values("x", torch.tensor([10.0]))
    assert sums.means() == {"x": 4.0}


def test_columns_are_added_as_each_alone():
    values, mask = torch.arange(6.0).view(2, 3), torch.tensor([True, False, True])
    for counted in (None, mask):
        together, alone = MetricSums(), MetricSums()
        for _ in range(2):
            together.add_columns({"x": values[0], "y": values[1] > 3}, counted)
            alone.add_values("x", values[0], counted)
            alone.add_values("y", values[1] > 3, counted)
        assert together.state_dict() == alone.state_dict()
        assert together.names == ["x", "y"]


def test_means_are_forgotten_once_read():
    sums = MetricSums()
    sums.add_values("x", torch.ones(2))
    sums.means()
    assert sums.means() == {}


def test_a_metric_without_values_is_left_out_but_keeps_its_place_for_other_processes():
    sums = MetricSums()
    sums.add_values("empty", torch.zeros(0))
    seen = []
    assert sums.means(lambda table: seen.append(table.shape) or table) == {}
    assert seen == [(1, 2)]


def test_other_processes_are_summed_before_dividing():
    sums = MetricSums()
    sums.add_values("x", torch.tensor([2.0]))
    other = torch.tensor([[10.0, 3.0]], dtype=torch.float64)
    assert sums.means(lambda table: table + other) == {"x": 3.0}


def test_a_metric_that_only_other_processes_have_has_its_place():
    sums = MetricSums()
    sums.add_values("b", torch.tensor([2.0]))
    sums.know(["a", "b"], torch.device("cpu"))
    assert sums.names == ["a", "b"]
    other = torch.tensor([[10.0, 2.0], [4.0, 1.0]], dtype=torch.float64)
    assert sums.means(lambda table: table + other) == {"a": 5.0, "b": 3.0}


def index_of_two_pairs():
    return make_index(
        chosen=[0, 2],
        rejected=[1, 3],
        unpaired=[0, 1, 2, 3],
        labels=[True, False, True, False],
        preferred=[0, 2],
    )


LOGPS = torch.tensor([-1.0, -4.0, -3.0, -2.0])
REFERENCE = torch.tensor([-2.0, -2.0, -2.0, -2.0])
LENGTHS = torch.tensor([1, 2, 3, 4])


def metrics_of(name, kl=None):
    objective, index, sums = parse_objective(name), index_of_two_pairs(), MetricSums()
    scalars = {} if kl is None else {"kl": kl}
    completions = Completions(LOGPS, LENGTHS, REFERENCE, scalars=scalars)
    outputs = [term_output(term, index, completions) for term in objective.terms]
    counts = torch.stack([term_counts(term, index, LENGTHS) for term in objective.terms])
    add_batch_metrics(sums, objective, outputs, counts, index, LOGPS, LENGTHS)
    return with_margins(sums.means())


def test_pairs_are_logged_under_trls_names():
    # log-ratios: chosen 1 and -1, rejected -2 and 0; times beta 0.1.
    metrics = metrics_of("dpo")
    assert metrics["rewards/chosen"] == pytest.approx(0.0)
    assert metrics["rewards/rejected"] == pytest.approx(-0.1)
    assert metrics["rewards/margins"] == pytest.approx(0.1)
    assert metrics["rewards/accuracies"] == pytest.approx(0.5)
    assert metrics["logps/chosen"] == pytest.approx(-2.0)
    assert metrics["logps/rejected"] == pytest.approx(-3.0)
    assert metrics["lengths/rejected"] == pytest.approx(3.0)


def test_unpaired_data_is_logged_by_their_label():
    metrics = metrics_of("kto", kl=torch.tensor(0.0))
    assert metrics["rewards/margins"] == pytest.approx(0.1)
    assert metrics["logps/chosen"] == pytest.approx(-2.0)


def test_a_loss_on_single_completions_has_the_accuracy_of_the_pairs_that_there_are():
    # Of the pairs, the first has log-ratios 1 and -2, the second -1 and 0: one of two is right.
    assert metrics_of("kto", kl=torch.tensor(0.0))["rewards/accuracies"] == pytest.approx(0.5)


def test_log_ratios_are_the_same_for_every_loss():
    for name in ("dpo", "simpo", "kto"):
        objective, sums = parse_objective(name), MetricSums()
        add_log_ratios(sums, objective, index_of_two_pairs(), LOGPS - REFERENCE)
        assert sums.means() == {
            "log_ratios/chosen": pytest.approx(0.0),
            "log_ratios/rejected": pytest.approx(-1.0),
            "log_ratios/margins": pytest.approx(1.0),
            "log_ratios/accuracies": pytest.approx(0.5),
        }


def test_the_terms_of_a_sum_are_logged_apart_each_over_its_own_units():
    metrics = metrics_of("dpo + 0.2*sft")
    assert metrics["loss/sft"] == pytest.approx(4.0 / 4.0)  # nats a token: 4 nats, 1 + 3 tokens
    assert "loss/dpo" in metrics


def test_rewards_of_a_batch_are_those_of_the_first_loss_that_has_some():
    index = make_index(chosen=[0], rejected=[1], unpaired=[0, 1], labels=[True, False])
    without = LossOutput(torch.zeros(1))
    pairs = LossOutput(torch.zeros(1), torch.ones(1), -torch.ones(1))
    unpaired = LossOutput(torch.zeros(2), rewards=torch.tensor([0.5, -0.5]))
    found = batch_rewards(parse_objective("sft + dpo + kto"), [without, pairs, unpaired], index)
    assert (found.chosen.tolist(), found.rejected.tolist()) == ([1.0], [-1.0])
    assert (found.pairs.tolist(), found.unpaired, found.labels) == ([0], None, None)
    found = batch_rewards(parse_objective("kto"), [unpaired], index)
    assert (found.unpaired.tolist(), found.labels.tolist()) == ([0.5, -0.5], [True, False])
    assert found.completions.tolist() == [0, 1]
    assert batch_rewards(parse_objective("sft"), [without], index) == (None,) * 6


def test_rows_of_each_kind_have_the_rewards_of_their_own_loss():
    pairs = make_index(chosen=[0], rejected=[1])
    thumbs = make_index(unpaired=[2], labels=[False])
    index = dataclasses.replace(pairs, by_kind={"paired": pairs, "unpaired": thumbs})
    objective = parse_objective({"paired": "dpo", "unpaired": "kto"})
    outputs = [
        LossOutput(torch.zeros(1), torch.ones(1), -torch.ones(1)),
        LossOutput(torch.zeros(1), rewards=torch.tensor([0.5])),
    ]
    found = batch_rewards(objective, outputs, index)
    assert [column.tolist() for column in found] == [[1.0], [-1.0], [0.5], [False], [0], [2]]
