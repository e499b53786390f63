"""Views of a batch: pairs, thumbs, rankings by size, and what the data say of them."""

import pytest
import torch
from datasets import Dataset

from prefopt.data import DataError, prepare_dataset
from prefopt.data.columns import check_columns, check_margins
from prefopt.data.views import scores_of, views_of
from tests.models import tiny_tokenizer


def row(kind, completions, ranks=(), desirable=(), **more):
    return {
        "kind": kind,
        "completion_ids": [[1]] * completions,
        "ranks": list(ranks),
        "desirable": list(desirable),
    } | more


PAIR = row("paired", 2, [0, 1], [True, False])
THUMB = row("unpaired", 1, desirable=[False])
RANKING = row("ranked", 3, [0, 1, 1], scores=[5.0, 2.0, 1.0])


def test_pairs_thumbs_and_best_ones():
    views = views_of([PAIR, THUMB, RANKING])
    assert views["chosen_index"].tolist() == [0, 3, 3]
    assert views["rejected_index"].tolist() == [1, 4, 5]
    assert views["labelled_index"].tolist() == [0, 1, 2]
    assert views["desirable"].tolist() == [True, False, False]
    assert views["preferred_index"].tolist() == [0, 3]
    assert "of_kind" not in views
    assert "pair_weights" not in views


def test_rankings_come_by_size_with_scores():
    views = views_of([RANKING, PAIR, THUMB, PAIR | {"score_chosen": 3.0, "score_rejected": 1.0}])
    two, three = views["rankings"]
    assert two["index"].tolist() == [[3, 4], [6, 7]]
    assert two["scores"].tolist() == [[1.0, 0.0], [3.0, 1.0]]
    assert three["index"].tolist() == [[0, 1, 2]]
    assert three["scores"].tolist() == [[5.0, 2.0, 1.0]]


def test_margins_are_the_column_or_the_difference_of_scores():
    views = views_of([RANKING, PAIR | {"margin": 0.5}, PAIR])
    assert views["margins"].tolist() == [3.0, 4.0, 0.5, 0.0]
    scored = PAIR | {"score_chosen": 3.0, "score_rejected": 1.0}
    assert views_of([scored])["margins"].tolist() == [2.0]
    assert views_of([scored | {"margin": 0.25}])["margins"].tolist() == [0.25]
    assert scores_of(PAIR) == []


def test_soft_labels_are_one_where_the_data_do_not_say():
    views = views_of([PAIR | {"preference_probability": 0.7}, PAIR])
    torch.testing.assert_close(views["preference_probabilities"], torch.tensor([0.7, 1.0]))


def test_win_rates_are_those_of_the_soft_label_where_the_data_do_not_say():
    given = PAIR | {"win_rate_chosen": 0.75, "win_rate_rejected": 0.5}
    views = views_of([given, PAIR, THUMB, PAIR | {"preference_probability": 0.25}])
    assert views["chosen_win_rates"].tolist() == [0.75, 1.0, 0.25]
    assert views["rejected_win_rates"].tolist() == [0.5, 0.0, 0.75]
    assert "chosen_win_rates" not in views_of([PAIR])


def test_weights_go_to_every_unit_of_their_row():
    views = views_of([RANKING | {"weight": 2.0}, THUMB | {"weight": 0.5}, PAIR])
    assert views["pair_weights"].tolist() == [2.0, 2.0, 1.0]
    assert views["labelled_weights"].tolist() == [0.5, 1.0, 1.0]
    assert views["preferred_weights"].tolist() == [2.0, 1.0]
    assert views["ranked_weights"].tolist() == [1.0, 2.0]  # as the rankings: by size


def test_views_by_kind_hold_the_rows_of_each_kind():
    of_kind = views_of([PAIR, THUMB, PAIR], by_kind=True)["of_kind"]
    assert of_kind["paired"]["chosen_index"].tolist() == [0, 3]
    assert of_kind["paired"]["labelled_index"].tolist() == [0, 1, 3, 4]
    assert of_kind["unpaired"]["labelled_index"].tolist() == [2]
    assert of_kind["unpaired"]["chosen_index"].tolist() == []
    assert of_kind["ranked"]["rankings"] == []


ROWS = {"prompt": ["w3"] * 3, "chosen": [" w4", " w5", " w6"], "rejected": [" w7"] * 3}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("weight", [1.0, -1.0, 1.0], "train data, row 1, column 'weight': is -1.0; .* at least 0"),
        ("preference_probability", [0.0, 1.0, 1.5], "row 2, column 'preference_probability'"),
        ("win_rate_chosen", [0.0, 1.0, -0.5], "row 2, column 'win_rate_chosen'"),
        ("win_rate_rejected", [0.0, 1.0, 0.5], "win rates are of both completions: add"),
        ("margin", [0.0, float("nan"), 1.0], "row 1, column 'margin': is nan"),
        ("margin", ["a", "b", "c"], "column 'margin': must hold numbers"),
    ],
)
def test_wrong_numbers_are_met_before_training(column, values, message):
    rows = Dataset.from_dict(ROWS | {column: values})
    with pytest.raises(DataError, match=message):
        prepare_dataset(rows, tiny_tokenizer())


def test_a_loss_that_asks_for_margins_needs_a_column_that_tells_them():
    with pytest.raises(DataError, match="add a column 'margin', or 'score_chosen'"):
        check_margins(["prompt_ids"], ["chosen_logps", "margins"])
    for column in ("margin", "scores", "score_chosen"):
        check_margins([column], ["margins"])
    check_margins(["prompt_ids"], ["chosen_logps"])


def test_missing_and_whole_numbers_are_fine():
    check_columns(Dataset.from_dict(ROWS | {"weight": [None, 2, 0], "margin": [None] * 3}))
