"""How varied and how long texts are: distinct n-grams, tokens, and the share that was cut.

Source of distinct-n: Li et al. 2016, arXiv:1510.03055. Departures from it: distinct n-grams are
divided by the number of n-grams, not of words, so that 1 means that all differ. It falls as texts
get more or longer: compare it only between as many answers to the same prompts, of about the same
length.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from prefopt.evaluation.intervals import Estimate, bootstrap_interval, wilson_interval
from prefopt.evaluation.sampling import Generation

__all__ = ["TextStatistics", "distinct_ngrams", "text_statistics"]

_Z = 1.959963984540054  # of 95%


class TextStatistics(NamedTuple):
    """What the answers of a model look like.

    Attributes:
        completion_tokens: Tokens of an answer, its end included.
        distinct_1: Distinct words, as a share of all words.
        distinct_2: Distinct pairs of neighbouring words, as a share of all pairs.
        truncated: Share of answers that were cut at the longest length allowed.
    """

    completion_tokens: Estimate
    distinct_1: Estimate
    distinct_2: Estimate
    truncated: Estimate


def text_statistics(answers: Sequence[Generation]) -> TextStatistics:
    """Return what answers look like, each number with its 95% interval.

    Args:
        answers: At least one.

    Raises:
        ValueError: If there are none.
    """
    texts = [answer.text for answer in answers]
    lengths = torch.tensor([float(answer.tokens) for answer in answers])
    return TextStatistics(
        completion_tokens=bootstrap_interval(lengths),
        distinct_1=distinct_ngrams(texts, 1),
        distinct_2=distinct_ngrams(texts, 2),
        truncated=wilson_interval(sum(answer.truncated for answer in answers), len(answers)),
    )


def distinct_ngrams(texts: Sequence[str], n: int) -> Estimate:
    """Return how many n-grams of words are distinct, as a share of all n-grams of all texts.

    Args:
        texts: The texts; words are what white space separates.
        n: Words of an n-gram; at least 1.

    Returns:
        The share, with its 95% interval by the jackknife over texts (a bootstrap repeats texts,
        and so has fewer distinct n-grams); NaN where no text has n words. Its size is the number
        of texts.

    Raises:
        ValueError: If ``n`` is less than 1, or there are no texts.

    Examples:
        >>> distinct_ngrams(["a b a b", "a b c"], 2).value  # ab ba ab, ab bc: 3 of 5
        0.6
    """
    if n < 1 or not texts:
        raise ValueError(f"need n of at least 1 and at least one text, got n={n}, {len(texts)}")
    counts = [Counter(_ngrams(text.split(), n)) for text in texts]
    holders = Counter(ngram for own in counts for ngram in own)
    every = sum(own.total() for own in counts)
    if not every:
        return Estimate(math.nan, math.nan, math.nan, len(texts))
    share = len(holders) / every
    without = [
        (len(holders) - sum(holders[ngram] == 1 for ngram in own)) / (every - own.total())
        for own in counts
        if every > own.total()
    ]
    if len(without) < len(texts):  # one text holds all of them
        return Estimate(share, math.nan, math.nan, len(texts))
    spread = _Z * _jackknife_error(without)
    return Estimate(share, max(0.0, share - spread), min(1.0, share + spread), len(texts))


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _jackknife_error(without: Sequence[float]) -> float:
    """Return the standard error of a number, from its values without each observation."""
    size, mean = len(without), sum(without) / len(without)
    return math.sqrt((size - 1) / size * sum((value - mean) ** 2 for value in without))
