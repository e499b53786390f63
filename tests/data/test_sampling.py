"""Every stretch of an epoch holds both labels in the proportion of the data, in random order."""

import numpy as np
import pytest
from datasets import Dataset

from prefopt.data.collate import BATCHES
from prefopt.data.sampling import MixedLabels, unpaired_labels
from tests.models import tiny_rows
from tests.runs import trainer

LABELS = np.arange(400) % 5 == 0  # a fifth is desirable


def test_every_row_comes_once_in_another_order_each_epoch():
    sampler = MixedLabels(LABELS, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(400))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(MixedLabels(LABELS, seed=4)) != first


def test_every_stretch_has_the_mix_of_the_whole():
    order = LABELS[list(MixedLabels(LABELS, seed=0))]
    counts = order.reshape(-1, 10).sum(1)  # two in ten are desirable
    assert counts.min() >= 1
    assert counts.max() <= 3
    plain = np.random.default_rng(0).permutation(LABELS).reshape(-1, 10).sum(1)
    assert plain.min() == 0  # what a plain shuffle does


def test_the_order_within_a_label_is_random():
    order = list(MixedLabels(LABELS, seed=0))
    desirable = [row for row in order if LABELS[row]]
    assert abs(np.corrcoef(desirable, np.arange(len(desirable)))[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("kinds", "desirable", "wanted"),
    [
        (["unpaired"] * 3, [[True], [False], [True]], [True, False, True]),
        (["unpaired"] * 2, [[True], [True]], None),
        (["unpaired", "paired"], [[True], [True, False]], None),
    ],
)
def test_labels_are_those_of_unpaired_rows_with_both_labels(kinds, desirable, wanted):
    found = unpaired_labels(Dataset.from_dict({"kind": kinds, "desirable": desirable}))
    assert found is None if wanted is None else found.tolist() == wanted


def test_training_on_unpaired_rows_mixes_labels_and_others_are_shuffled_as_ever(tmp_path):
    rows = tiny_rows(40, "unpaired")
    trained = trainer(tmp_path, rows, loss_type="kto")
    assert isinstance(trained._get_train_sampler(), MixedLabels)
    for inputs in trained.get_train_dataloader():
        (batch,) = inputs[BATCHES]
        assert 0 < int(batch.index.labels.sum()) < len(batch.index.labels)
    in_order = trainer(tmp_path, rows, loss_type="kto", train_sampling_strategy="sequential")
    assert not isinstance(in_order._get_train_sampler(), MixedLabels)
    pairs = trainer(tmp_path, tiny_rows(8), loss_type="kto")
    assert not isinstance(pairs._get_train_sampler(), MixedLabels)
