"""Distinct-n, lengths and truncation against counts made by hand."""

import math
import random

import pytest
import torch

from prefopt.evaluation.sampling import Generation
from prefopt.evaluation.text import distinct_ngrams, text_statistics


def by_hand(texts: list[str], n: int) -> float:
    grams = []
    for text in texts:
        words = text.split()
        while len(words) >= n:
            grams.append(" ".join(words[:n]))
            words.pop(0)
    return len(set(grams)) / len(grams)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_ngrams_are_counted_over_all_texts(n):
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdef", k=draw.randint(3, 9))) for _ in range(20)]
    assert distinct_ngrams(texts, n).value == by_hand(texts, n)


def test_its_interval_is_the_jackknife():
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdefghij", k=draw.randint(1, 5))) for _ in range(12)]
    without = torch.tensor([by_hand(texts[:i] + texts[i + 1 :], 1) for i in range(12)])
    error = (11 / 12 * (without - without.mean()).square().sum()).sqrt().item()
    found = distinct_ngrams(texts, 1)
    assert found.high - found.value == pytest.approx(1.959964 * error, rel=1e-5)
    assert found.value - found.low == pytest.approx(1.959964 * error, rel=1e-5)
    assert found.size == 12


def test_the_interval_holds_the_number_of_other_texts_of_the_same_kind():
    """Drawn again 200 times, about 95% of the intervals hold the mean of all."""
    draw = random.Random(0)

    def sample():
        return [" ".join(draw.choices("abcdefghijklmnopqrst", k=4)) for _ in range(30)]

    found = [distinct_ngrams(sample(), 2) for _ in range(200)]
    mean = sum(it.value for it in found) / 200
    assert 180 <= sum(it.low <= mean <= it.high for it in found) <= 200


def test_where_there_is_nothing_to_count():
    assert math.isnan(distinct_ngrams(["a", "b"], 2).value)
    assert math.isnan(distinct_ngrams(["a b"], 1).low)  # one text has no spread
    with pytest.raises(ValueError, match="at least one text"):
        distinct_ngrams([], 1)
    with pytest.raises(ValueError, match="n=0"):
        distinct_ngrams(["a"], 0)


def test_statistics_of_answers():
    answers = [
        Generation("a b a", (1, 2, 1, 9), 4, False),
        Generation("a b c d", (1, 2, 3, 4), 4, True),
        Generation("", (9,), 1, False),
        Generation("c", (3, 9), 2, False),
    ]
    found = text_statistics(answers)
    assert found.completion_tokens.value == 11 / 4
    assert found.completion_tokens.low < 11 / 4 < found.completion_tokens.high
    assert found.distinct_1.value == 4 / 8
    assert found.distinct_2.value == 4 / 5  # ab ba, ab bc cd
    assert found.truncated.value == 1 / 4
    assert {estimate.size for estimate in found} == {4}
