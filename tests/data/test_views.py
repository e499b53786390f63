"""Views of a batch: pairs, thumbs, rankings by size, and what the data say of them."""

import torch

from prefopt.data.views import scores_of, views_of


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
