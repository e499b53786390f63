"""Whether methods differ on the same held-out pairs, and what length alone explains.

Two methods are compared row by row: what is hard for both cancels, so the interval of their
difference is much narrower than the intervals of both say. Sources: McNemar 1947, "Note on the
sampling error of the difference between correlated proportions" (in its exact form: Dwass 1957 and
Fisher's sign flips for means); Holm 1979, "A simple sequentially rejective multiple test
procedure"; Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and
Spearman correlations"; the matching is coarsened and exact within coarse bins (Iacus, King and
Porro 2012, "Causal inference without balance checking").
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.evaluation.intervals import (
    Estimate,
    bootstrap_interval,
    normal_quantile,
    preference_accuracy,
    resamples_of,
    wilson_interval,
)

__all__ = [
    "LengthBaselines",
    "agreement",
    "cluster_interval",
    "correct_pairs",
    "correlation",
    "holm",
    "length_balanced",
    "length_baselines",
    "mcnemar_test",
    "paired_difference",
    "paired_test",
    "sign_flip_test",
]

# Up to so many differences that are not 0, all patterns of signs are tried.
_ENUMERATED = 16

# Bins of length differences: each reaches to this many times its smallest difference.
_BIN_RATIO = 1.25


# Two methods on the same rows ---------------------------------------------------------------------


def correct_pairs(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Return for each pair 1 where its chosen completion scores higher, 0.5 for a tie, else 0.

    Args:
        chosen_scores: Any score of the chosen completions; (B,).
        rejected_scores: The same of the rejected completions; (B,).

    Returns:
        (B,), float64.

    >>> correct_pairs(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 2.0, 3.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return 0.5 + 0.5 * torch.sign(chosen_scores.double() - rejected_scores.double())


def paired_difference(
    first: Tensor,
    second: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Return the mean of first minus second, with its paired percentile bootstrap interval.

    Args:
        first: A number for each row, such as ``correct_pairs``, of one method; (B,). With several
            seeds of a method, the mean over them: rows are what is resampled.
        second: The same of the other method, on the same rows; (B,).
        confidence: Coverage, between 0 and 1.
        resamples: Number of resampled differences.
        seed: Of the resampling.

    Raises:
        ValueError: If the shapes differ, there are no rows, or a number is NaN.

    >>> paired_difference(torch.ones(50), torch.zeros(50))
    Estimate(value=1.0, low=1.0, high=1.0, size=50)
    """
    differences = _differences(first, second)
    return bootstrap_interval(differences, confidence=confidence, resamples=resamples, seed=seed)


def paired_test(first: Tensor, second: Tensor, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value that two methods do not differ on the same rows.

    McNemar's exact test where all numbers are 0 or 1, else that of sign flips.

    Args:
        first: A number for each row of one method; (B,).
        second: The same of the other method; (B,).
        resamples: Of the sign flips.
        seed: Of the sign flips.

    Raises:
        ValueError: If the shapes differ, there are no rows, or a number is NaN.
    """
    if _all_binary(first) and _all_binary(second):
        return mcnemar_test(first, second)
    return sign_flip_test(first, second, resamples=resamples, seed=seed)


def mcnemar_test(first: Tensor, second: Tensor) -> float:
    """Return McNemar's exact two-sided p-value of two shares on the same rows.

    Of the n rows on which only one of both is right, each is as likely to be right if they do not
    differ: twice the smaller tail of a binomial distribution with n trials and probability 1/2.

    Args:
        first: 1 (or True) where one method is right, 0 where it is wrong; (B,).
        second: The same of the other method; (B,).

    Raises:
        ValueError: If the shapes differ, there are no rows, or a number is neither 0 nor 1.

    >>> mcnemar_test(torch.tensor([1, 1, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 0, 0, 0]))
    0.0625
    """
    if not (_all_binary(first) and _all_binary(second)):
        raise ValueError("McNemar's test takes 0 and 1; for ties and means, use sign_flip_test")
    differences = _differences(first, second)
    only_first, only_second = int((differences > 0).sum()), int((differences < 0).sum())
    trials = only_first + only_second
    ways: int = 1
    term = 1
    for successes in range(min(only_first, only_second)):
        term = term * (trials - successes) // (successes + 1)
        ways += term
    p: float = 2 * ways / 2**trials
    return min(1.0, p)


def sign_flip_test(
    first: Tensor, second: Tensor, *, resamples: int = 10_000, seed: int = 0
) -> float:
    """Return the two-sided p-value of a difference of means on the same rows, by sign flips.

    If the methods do not differ, each row's difference is as likely to have the other sign. All
    patterns of signs are tried where 16 differences or fewer are not 0; else random ones, the
    observed one counted among them, so that p is never 0.

    Args:
        first: A number for each row of one method; (B,).
        second: The same of the other method; (B,).
        resamples: Random patterns of signs.
        seed: Of the patterns.

    Raises:
        ValueError: If the shapes differ, there are no rows, or a number is NaN.

    >>> sign_flip_test(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
    0.25
    """
    differences = _differences(first, second)
    differences = differences[differences != 0]
    count = len(differences)
    least = differences.sum().abs() - 1e-12 * differences.abs().sum()  # sums are rounded
    if count <= _ENUMERATED:
        patterns = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
        return ((_signed(patterns) @ differences).abs() >= least).double().mean().item()
    generator = torch.Generator().manual_seed(seed)
    extreme = 0
    for rows in _chunks(resamples, count):
        patterns = torch.randint(2, (rows, count), generator=generator, dtype=torch.int8)
        extreme += int(((_signed(patterns) @ differences).abs() >= least).sum())
    return (extreme + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's procedure, in the order given.

    Below a threshold, they reject with at most that probability of any wrong rejection.

    Args:
        p_values: One for each comparison that was made.

    Raises:
        ValueError: If one is not between 0 and 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1, got {list(p_values)}")
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def cluster_interval(
    values: Tensor,
    clusters: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return a mean and its percentile bootstrap interval, where values come in groups.

    Pairs of one ranking, or samples of one prompt, say less than as many independent ones: whole
    groups are resampled.

    Args:
        values: Observations; (B,).
        clusters: The number of the group that each belongs to; (B,), integers.
        confidence: Coverage, between 0 and 1.
        resamples: Number of resampled means.
        seed: Of the resampling.

    Returns:
        The mean over values; its ``size`` is the number of groups.

    Raises:
        ValueError: If the shapes differ, there are no values, or one is NaN.
    """
    if values.shape != clusters.shape:
        raise ValueError(f"got {tuple(values.shape)} values in {tuple(clusters.shape)} groups")
    values = _checked(values)
    _, group, counts = _grouped(clusters.cpu())
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, group, values)
    means = torch.cat(
        [
            sums[picks].sum(1) / counts[picks].sum(1)
            for picks in resamples_of(len(counts), resamples, seed)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return Estimate(values.mean().item(), low, high, len(counts))


# Length -------------------------------------------------------------------------------------------


class LengthBaselines(NamedTuple):
    """Accuracy of two rules that look at nothing but lengths; equal lengths count one half.

    Attributes:
        longer: Of choosing the longer completion.
        shorter: Of choosing the shorter one.
    """

    longer: Estimate
    shorter: Estimate


def length_baselines(
    chosen_lengths: Tensor, rejected_lengths: Tensor, *, confidence: float = 0.95
) -> LengthBaselines:
    """Return how well length alone orders pairs.

    Args:
        chosen_lengths: Length of each chosen completion; (B,), tokens.
        rejected_lengths: The same of the rejected completions; (B,), tokens.
        confidence: Coverage of the intervals, between 0 and 1.

    Raises:
        ValueError: If the shapes differ or there are no pairs.

    >>> length_baselines(torch.tensor([5, 5, 3]), torch.tensor([2, 5, 4])).longer.value
    0.5
    """
    return LengthBaselines(
        preference_accuracy(chosen_lengths, rejected_lengths, confidence=confidence),
        preference_accuracy(rejected_lengths, chosen_lengths, confidence=confidence),
    )


def length_balanced(chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor:
    """Return the pairs of a subset in which length says nothing about which one is chosen.

    In each bin of absolute length difference, as many pairs are kept in which the longer completion
    is chosen as in which the shorter one is; of the side with more pairs, those evenly spread over
    the bin. Up to 5 tokens each difference has a bin of its own, beyond it bins reach 25% further
    than they begin. Pairs of equal length are kept. Choosing the longer, or the shorter, completion
    is right for exactly half of the subset.

    Args:
        chosen_lengths: Length of each chosen completion; (B,), tokens.
        rejected_lengths: The same of the rejected completions; (B,), tokens.

    Returns:
        Their numbers, ascending; (S,), int64, at most B. Empty if nothing can be matched.

    Raises:
        ValueError: If the shapes differ.

    >>> length_balanced(torch.tensor([9, 9, 5, 1, 4]), torch.tensor([5, 4, 5, 5, 4])).tolist()
    [0, 2, 3, 4]
    """
    if chosen_lengths.shape != rejected_lengths.shape or chosen_lengths.dim() != 1:
        shapes = f"{tuple(chosen_lengths.shape)} and {tuple(rejected_lengths.shape)}"
        raise ValueError(f"lengths must be two vectors of one length, got {shapes}")
    differences = (chosen_lengths.double() - rejected_lengths.double()).cpu()
    bins = (differences.abs().clamp(min=1).log() / math.log(_BIN_RATIO)).floor()
    kept = [(differences == 0).nonzero()[:, 0]]
    for number in _grouped(bins)[0]:
        sides = [
            ((bins == number) & (differences * sign > 0)).nonzero()[:, 0] for sign in (1.0, -1.0)
        ]
        count = min(map(len, sides))
        kept += [_spread(side, differences[side].abs(), count) for side in sides]
    return torch.cat(kept).sort().values


def _spread(numbers: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Return ``count`` of the numbers, evenly spread over their sizes."""
    order = sizes.sort(stable=True).indices
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * len(numbers) / max(count, 1)
    return numbers[order[places.long()]]


def correlation(
    first: Tensor, second: Tensor, *, ranks: bool = True, confidence: float = 0.95
) -> Estimate:
    """Return a correlation and its interval, by Fisher's z.

    Args:
        first: (B,) with B at least 4.
        second: (B,).
        ranks: Spearman's correlation, of ranks (ties share their mean rank), which a few extreme
            values cannot decide; else Pearson's.
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: If the shapes differ, there are fewer than 4 values, one is NaN, or all values
            of a side are equal, so that there is no correlation.
    """
    _ = _differences(first, second)  # raises for what does not fit
    first, second = _checked(first), _checked(second)
    count = len(first)
    if count < 4:
        raise ValueError(f"a correlation with an interval needs at least 4 values, got {count}")
    if ranks:
        first, second = _ranks(first), _ranks(second)
    first, second = first - first.mean(), second - second.mean()
    scale = (first.square().sum() * second.square().sum()).sqrt().item()
    if scale == 0:
        raise ValueError("all values of a side are equal: there is no correlation")
    value = max(-1.0, min(1.0, (first @ second).item() / scale))
    if abs(value) == 1:
        return Estimate(value, value, value, count)
    variance = (1 + value * value / 2 if ranks else 1) / (count - 3)
    spread = normal_quantile(confidence) * math.sqrt(variance)
    middle = math.atanh(value)
    return Estimate(value, math.tanh(middle - spread), math.tanh(middle + spread), count)


def agreement(margins: Tensor, other_margins: Tensor, *, confidence: float = 0.95) -> Estimate:
    """Return the share of pairs that two models order alike; a tie of either counts one half.

    Args:
        margins: Score of the chosen minus score of the rejected completion, by one model; (B,).
        other_margins: The same by the other; (B,). Only signs matter.
        confidence: Coverage of Wilson's interval, between 0 and 1.

    Raises:
        ValueError: If the shapes differ, there are no pairs, or a margin is NaN.

    >>> agreement(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.1, 5.0, 0.0])).value
    0.5
    """
    _ = _differences(margins, other_margins)  # raises for what does not fit
    same = torch.sign(_checked(margins)) * torch.sign(_checked(other_margins))
    return wilson_interval((0.5 + 0.5 * same).sum().item(), len(same), confidence=confidence)


# Helpers ------------------------------------------------------------------------------------------


def _differences(first: Tensor, second: Tensor) -> Tensor:
    if first.shape != second.shape or first.dim() != 1:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"two methods need numbers of the same rows, got shapes {shapes}")
    return _checked(first) - _checked(second)


def _checked(values: Tensor) -> Tensor:
    values = values.detach().double().cpu()
    if not len(values):
        raise ValueError("there are no rows")
    if bool(values.isnan().any()):
        raise ValueError("a number is NaN")
    return values


def _all_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _signed(bits: Tensor) -> Tensor:
    return bits.double() * 2 - 1


def _chunks(rows: int, width: int) -> list[int]:
    """Return how many rows of this width are made at a time: 32 MB of float64."""
    size = max(1, 2**22 // max(width, 1))
    return [min(size, rows - start) for start in range(0, rows, size)]


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value from 1; equal values share the mean of theirs; (B,)."""
    _, places, counts = _grouped(values)
    ranks: Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return ranks[places]


def _grouped(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the different values, the place of each value among them, and their counts."""
    found: tuple[Tensor, Tensor, Tensor]
    found = torch.unique(values, return_inverse=True, return_counts=True)
    return found
