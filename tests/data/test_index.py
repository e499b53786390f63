"""Views of a batch: pairs, unpaired rows, rankings by size, and what the data say of them."""

import torch

from prefopt.data.index import index_of, scores_of


def row(kind, completions, ranks=(), desirable=(), **more):
    return {
        "kind": kind,
        "completion_ids": [[1]] * completions,
        "ranks": list(ranks),
        "desirable": list(desirable),
    } | more


PAIR = row("paired", 2, [0, 1], [True, False])
UNPAIRED = row("unpaired", 1, desirable=[False])
RANKING = row("ranked", 3, [0, 1, 1], scores=[5.0, 2.0, 1.0])


def test_pairs_unpaired_rows_and_best_ones():
    index = index_of([PAIR, UNPAIRED, RANKING])
    assert index.chosen.tolist() == [0, 3, 3]
    assert index.rejected.tolist() == [1, 4, 5]
    assert index.unpaired.tolist() == [0, 1, 2]
    assert index.labels.tolist() == [True, False, False]
    assert index.preferred.tolist() == [0, 3]
    assert index.by_kind == {}
    assert index.pair_weights is None


def test_rankings_come_by_size_with_scores():
    index = index_of([RANKING, PAIR, UNPAIRED, PAIR | {"score_chosen": 3.0, "score_rejected": 1.0}])
    two, three = index.rankings
    assert two.index.tolist() == [[3, 4], [6, 7]]
    assert two.scores.tolist() == [[1.0, 0.0], [3.0, 1.0]]
    assert three.index.tolist() == [[0, 1, 2]]
    assert three.scores.tolist() == [[5.0, 2.0, 1.0]]


def test_margins_are_the_column_or_the_difference_of_scores():
    index = index_of([RANKING, PAIR | {"margin": 0.5}, PAIR])
    assert index.margins.tolist() == [3.0, 4.0, 0.5, 0.0]
    scored = PAIR | {"score_chosen": 3.0, "score_rejected": 1.0}
    assert index_of([scored]).margins.tolist() == [2.0]
    assert index_of([scored | {"margin": 0.25}]).margins.tolist() == [0.25]
    assert scores_of(PAIR) == []
    assert scores_of(PAIR | {"scores": "of somebody"}) == []  # a column that is not read


def test_soft_labels_are_one_where_the_data_do_not_say():
    index = index_of([PAIR | {"preference_probability": 0.7}, PAIR])
    torch.testing.assert_close(index.preference_probabilities, torch.tensor([0.7, 1.0]))


def test_win_rates_are_those_of_the_soft_label_where_the_data_do_not_say():
    given = PAIR | {"win_rate_chosen": 0.75, "win_rate_rejected": 0.5}
    index = index_of([given, PAIR, UNPAIRED, PAIR | {"preference_probability": 0.25}])
    assert index.chosen_win_rates.tolist() == [0.75, 1.0, 0.25]
    assert index.rejected_win_rates.tolist() == [0.5, 0.0, 0.75]
    assert index_of([PAIR]).chosen_win_rates is None


def test_weights_go_to_every_unit_of_their_row():
    index = index_of([RANKING | {"weight": 2.0}, UNPAIRED | {"weight": 0.5}, PAIR])
    assert index.pair_weights.tolist() == [2.0, 2.0, 1.0]
    assert index.unpaired_weights.tolist() == [0.5, 1.0, 1.0]
    assert index.preferred_weights.tolist() == [2.0, 1.0]
    assert index.ranked_weights.tolist() == [1.0, 2.0]  # as the rankings: by size


def test_views_by_kind_hold_the_rows_of_each_kind():
    of_kind = index_of([PAIR, UNPAIRED, PAIR], by_kind=True).by_kind
    assert of_kind["paired"].chosen.tolist() == [0, 3]
    assert of_kind["paired"].unpaired.tolist() == [0, 1, 3, 4]
    assert of_kind["unpaired"].unpaired.tolist() == [2]
    assert of_kind["unpaired"].chosen.tolist() == []
    assert of_kind["ranked"].rankings == ()
