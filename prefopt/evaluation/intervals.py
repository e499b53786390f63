"""Confidence intervals of shares and means: Wilson, bootstrap and normal.

Preference accuracy and win rate are shares of comparisons in which one score beats another; a
tie counts one half, so a model that scores all texts alike gets 50%, not 0 or 100.

Source of the interval of a share: Wilson 1927, "Probable inference, the law of succession, and
statistical inference".
"""

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Estimate",
    "bootstrap_interval",
    "mean_interval",
    "normal_quantile",
    "preference_accuracy",
    "resamples_of",
    "wilson_interval",
    "win_rate",
]


class Estimate(NamedTuple):
    """A measured number and its confidence interval.

    Attributes:
        value: The measurement.
        low: Lower end of the confidence interval.
        high: Upper end.
        size: Number of observations.
    """

    value: float
    low: float
    high: float
    size: int


def wilson_interval(successes: float, count: int, *, confidence: float = 0.95) -> Estimate:
    """Return a share and its Wilson score interval.

    Args:
        successes: Number of successes; halves are allowed, for ties.
        count: Number of trials.
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: If there are no trials, or the successes do not fit them.

    >>> [round(x, 4) for x in wilson_interval(81, 263)]
    [0.308, 0.2553, 0.3662, 263]
    """
    if count <= 0 or not 0 <= successes <= count:
        raise ValueError(f"need 0 <= successes <= count and count > 0, got {successes} of {count}")
    z = normal_quantile(confidence)
    share = successes / count
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    middle = share + z * z / (2 * count)
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return Estimate(share, max(0.0, low), min(1.0, high), count)


def mean_interval(values: Tensor, *, confidence: float = 0.95) -> Estimate:
    """Return a mean and its normal interval, mean +- z times the standard error.

    Args:
        values: Independent observations; (B,) with B at least 2.
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: If there are fewer than two values.
    """
    values = _flat(values, least=2)
    mean = values.mean().item()
    spread = normal_quantile(confidence) * values.std().item() / math.sqrt(len(values))
    return Estimate(mean, mean - spread, mean + spread, len(values))


def bootstrap_interval(
    values: Tensor, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Return a mean and its percentile bootstrap interval, for values far from normal.

    Args:
        values: Independent observations; (B,).
        confidence: Coverage, between 0 and 1.
        resamples: Number of resampled means.
        seed: Of the resampling.

    Raises:
        ValueError: If there are no values.
    """
    values = _flat(values, least=1)
    means = torch.cat(
        [values[picks].mean(1) for picks in resamples_of(len(values), resamples, seed)]
    )
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return Estimate(values.mean().item(), low, high, len(values))


def preference_accuracy(
    chosen_scores: Tensor, rejected_scores: Tensor, *, confidence: float = 0.95
) -> Estimate:
    """Return the share of pairs whose chosen completion scores higher, with Wilson's interval.

    Args:
        chosen_scores: Implicit rewards, or any score, of the chosen completions; (B,).
        rejected_scores: The same of the rejected completions; (B,).
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: If the shapes differ, there are no pairs, or a score is NaN.

    >>> preference_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0])).value
    0.75
    """
    if chosen_scores.shape != rejected_scores.shape or chosen_scores.dim() != 1:
        shapes = f"{tuple(chosen_scores.shape)} and {tuple(rejected_scores.shape)}"
        raise ValueError(f"scores must be two vectors of one length, got {shapes}")
    if bool((chosen_scores.isnan() | rejected_scores.isnan()).any()):
        raise ValueError("a score is NaN, so the pair has no winner")
    wins = (chosen_scores > rejected_scores).sum().item()
    ties = (chosen_scores == rejected_scores).sum().item()
    return wilson_interval(wins + 0.5 * ties, len(chosen_scores), confidence=confidence)


def win_rate(scores: Tensor, other_scores: Tensor, *, confidence: float = 0.95) -> Estimate:
    """Return the share of prompts on which the first of two models scores higher.

    Args:
        scores: A judge's scores of one model's completions, one for each prompt; (B,).
        other_scores: Scores of the other model's completions of the same prompts; (B,).
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: If the shapes differ, there are no prompts, or a score is NaN.
    """
    return preference_accuracy(scores, other_scores, confidence=confidence)


def resamples_of(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Yield bootstrap resamples, as many at a time as fit into 32 MB.

    Args:
        count: Number of observations.
        resamples: Number of resamples.
        seed: Of the resampling.

    Yields:
        Numbers of observations, with replacement; (rows, count) each, ``resamples`` rows in all.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, 2**22 // max(count, 1))
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), count)
        yield torch.randint(count, size, generator=generator)


def normal_quantile(confidence: float) -> float:
    """Return how many standard errors an interval reaches to either side.

    Raises:
        ValueError: If the confidence is not between 0 and 1.

    >>> round(normal_quantile(0.95), 3)
    1.96
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _flat(values: Tensor, *, least: int) -> Tensor:
    values = values.detach().flatten().double().cpu()
    if len(values) < least:
        raise ValueError(f"need at least {least} values, got {len(values)}")
    return values
