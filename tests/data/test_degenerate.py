"""Datasets that hold nothing to learn as a whole."""

import warnings

import pytest

from prefopt.data import DataError
from prefopt.data.degenerate import check_learnable
from prefopt.data.report import DataReport


def report(kept, kind="paired", **counts):
    return DataReport("train", kept, kept, {kind: kept}, **counts)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"identical": 6}, "chosen and rejected are the same in each row, so"),
        ({"identical": 2, "identical_after_cut": 4}, "once they are cut to max_length"),
        ({"empty": 6}, "each row has a completion without a word"),
    ],
)
def test_pairs_that_teach_nothing_are_refused_if_all_are_such(counts, says):
    with pytest.raises(DataError, match=f"train data: .*{says}"):
        check_learnable([report(6, **counts)], "train")
    check_learnable([report(7, **counts)], "train")
    check_learnable([report(6, **counts), report(1)], "train")


def test_equal_completions_of_a_ranking_leave_others_to_learn_from():
    check_learnable([report(6, "ranked", identical=6)], "train")


@pytest.mark.parametrize(
    ("labels", "says"),
    [({"desirable": 3}, "every label is True"), ({"undesirable": 3}, "is False .* less likely")],
)
def test_labels_of_one_kind_are_warned_of_where_the_loss_takes_labels(labels, says):
    one_sided = report(3, "unpaired", **labels)
    with pytest.warns(UserWarning, match=says):
        check_learnable([one_sided], "train", takes_labels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_learnable([one_sided], "train")
        both = report(3, "unpaired", desirable=1, undesirable=2)
        check_learnable([both, one_sided], "train", takes_labels=True)
