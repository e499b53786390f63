"""Data sets of the toy world: the judges follow the probabilities they are said to follow."""

import math

import pytest

from prefopt.toy.data import sample_pairs, sample_unpaired
from prefopt.toy.grammar import HELD_OUT_NAMES, NAMES
from prefopt.toy.reward import preference_probability, true_reward


def test_pairs_repeat_with_their_seed_and_carry_their_true_rewards():
    rows = sample_pairs(100, seed=7)
    assert rows == sample_pairs(100, seed=7)
    assert rows != sample_pairs(100, seed=8)
    for row in rows:
        assert row["chosen"] != row["rejected"]
        assert row["reward_chosen"] == true_reward(row["chosen"])
        assert row["reward_rejected"] == true_reward(row["rejected"])


def test_bradley_terry_frequencies_match_the_reward_gap():
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row in sample_pairs(8000, seed=1):
        gap = row["reward_chosen"] - row["reward_rejected"]
        bins.setdefault(min(4, int(abs(gap))), []).append((abs(gap), gap > 0))
    assert len(bins) == 5
    for judged in bins.values():
        expected = sum(preference_probability(gap, 0.0) for gap, _ in judged) / len(judged)
        observed = sum(right for _, right in judged) / len(judged)
        spread = math.sqrt(expected * (1 - expected) / len(judged))
        assert observed == pytest.approx(expected, abs=4.5 * spread)


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_labels_follow_the_logistic_of_the_reward(threshold):
    rows = sample_unpaired(8000, seed=1, threshold=threshold)
    for positive in (False, True):
        part = [row for row in rows if (row["reward"] > threshold) == positive]
        expected = sum(preference_probability(row["reward"], threshold) for row in part) / len(part)
        observed = sum(row["label"] for row in part) / len(part)
        spread = math.sqrt(expected * (1 - expected) / len(part))
        assert observed == pytest.approx(expected, abs=4.5 * spread)


def test_rows_keep_to_the_names_they_are_asked_for():
    for names in (HELD_OUT_NAMES, NAMES[:1]):
        for rows in (sample_pairs(50, names=names), sample_unpaired(50, names=names)):
            assert {row["prompt"].split()[4] for row in rows} == set(names)
