"""Values of a row, its label, and the order of its ranking."""

import pytest

from prefopt.data import DataError
from prefopt.data.example import Cells, Judgement, read_label, read_ranking


def cells(**values):
    return Cells({name: item for name, item in values.items() if item is not None}, [*values], 7)


def test_a_value_that_is_needed_is_null_or_missing():
    row = cells(chosen="a", rejected=None)
    assert "chosen" in row
    assert "rejected" not in row
    assert row.get("rejected") is None
    assert row.need("chosen", "why") == "a"
    with pytest.raises(DataError, match="row 7, column 'rejected': is null; why"):
        row.need("rejected", "why")
    with pytest.raises(DataError, match="row 7, column 'prompt': no such column; why"):
        row.need("prompt", "why")


def test_a_column_that_is_missing_is_told_with_those_that_are_there_and_what_to_rename():
    with pytest.raises(DataError) as error:
        cells(question="a", chosen="b", rejected=None).need("prompt", "why")
    assert "perhaps it is 'question': " in str(error.value)
    assert str(error.value).endswith("; the columns are question, chosen, rejected")


@pytest.mark.parametrize(("label", "wanted"), [(True, True), (0, False), (1.0, True)])
def test_labels_are_true_or_false_or_one_or_zero(label, wanted):
    assert read_label(cells(label=label)) is wanted


@pytest.mark.parametrize("label", ["good", 2, -1, [True]])
def test_other_labels_are_errors(label):
    with pytest.raises(DataError, match="row 7, column 'label': needs True, False, 1 or 0, got"):
        read_label(cells(label=label))


def test_ranks_put_the_lowest_first_and_count_from_zero():
    found = read_ranking(cells(ranks=[5, 2, 5]), 3, ranked_as_given=False)
    assert found == Judgement("ranked", [1, 0, 2], ranks=[0, 1, 1])


def test_scores_put_the_highest_first_unless_there_are_ranks():
    found = read_ranking(cells(scores=[0.5, 2.0]), 2, ranked_as_given=False)
    assert found == Judgement("ranked", [1, 0], ranks=[0, 1], scores=[2.0, 0.5])
    found = read_ranking(cells(scores=[0.5, 2.0], ranks=[1, 2]), 2, ranked_as_given=False)
    assert (found.order, found.scores) == ([0, 1], [0.5, 2.0])


def test_completions_without_ranks_are_best_first_or_an_error():
    assert read_ranking(cells(), 2, ranked_as_given=True).ranks == [0, 1]
    with pytest.raises(DataError, match="column 'ranks': no such column"):
        read_ranking(cells(), 2, ranked_as_given=False)


@pytest.mark.parametrize(
    ("ranks", "reason"), [([3], "one completion is no ranking"), ([1, 1], "share one rank")]
)
def test_nothing_is_preferred_among_one_or_equals(ranks, reason):
    found = read_ranking(cells(ranks=ranks), len(ranks), ranked_as_given=False)
    assert reason in found.unusable


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([0], "needs a list of 2 numbers, one a completion, got 1 of them"),
        ("01", "needs a list of 2 numbers, one a completion, got str"),
        ([0, True], "number 1 is True"),
        ([0.0, float("nan")], "number 1 is nan; it must be a finite number"),
    ],
)
def test_wrong_ranks_are_errors(ranks, message):
    with pytest.raises(DataError, match=message):
        read_ranking(cells(ranks=ranks), 2, ranked_as_given=False)
