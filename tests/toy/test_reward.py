"""The true reward, against values worked by hand from the equation of its module."""

import math

import pytest

from prefopt.toy.data import sample_texts
from prefopt.toy.grammar import parse_completion
from prefopt.toy.reward import preference_probability, sentiment_values, true_reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (" the plot was superb .", 4 - 5 * 0.05),
        (" the plot was not very awful .", -4 * 1.5 * -0.5 - 7 * 0.05),
        (" i found the plot slightly weak .", -2 * 0.5 - 7 * 0.05),
        (" i did not love the bed .", 3 * -0.5 - 7 * 0.05),
        # (-1.5 + 3) / 2, with 14 words
        (" the plot was not very good , while i loved the music .", 0.75 - 13 * 0.05),
        (
            " i hated the bed . i liked the view . the room was plain .",
            (-3 + 2 - 1) / 3 - 15 * 0.05,
        ),
        # Off the grammar: no sentiment, and modifiers that modify nothing.
        ("", 0.0),
        (" the of very not", -4 * 0.05),
        (" very superb superb", (6 + 4) / 2 - 3 * 0.05),
        (" not the superb", 4 - 3 * 0.05),
    ],
)
def test_the_reward_is_the_equation(text, reward):
    assert true_reward(text) == pytest.approx(reward)


def test_values_are_those_of_the_parsed_clauses():
    for row in sample_texts(300, seed=5):
        clauses = parse_completion(row["prompt"], row["completion"])
        assert sentiment_values(row["completion"]) == [clause.value for clause in clauses]


def test_longer_texts_are_worse_by_their_cost_only():
    by_length = {1: [], 2: [], 3: []}
    for row in sample_texts(6000, seed=2):
        values = sentiment_values(row["completion"])
        by_length[len(values)].append(sum(values) / len(values))
    means = {count: sum(values) / len(values) for count, values in by_length.items()}
    for mean in means.values():
        assert mean == pytest.approx(0.0, abs=0.2)


def test_preference_probability_is_the_logistic_of_the_gap():
    assert preference_probability(1.3, -0.4) == pytest.approx(1 / (1 + math.exp(-1.7)))
    assert preference_probability(-2e3, 2e3) == 0.0
    assert preference_probability(2e3, -2e3) == 1.0
