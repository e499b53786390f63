"""Win rates by a judge, plain and at equal lengths.

Source of the length-controlled win rate: Dubois et al. 2024, arXiv:2404.04475, section 3. The
judge's preference for model m over baseline b is fitted by

    logistic(theta + phi * tanh((len(z_m) - len(z_b)) / std(len(z_m) - len(z_b))))

and the win rate is what the fit predicts with a length difference of 0: logistic(theta). Departures
from it: there is no term of the prompt's difficulty, which needs answers of many models to the same
prompts (the package alpaca_eval calls that ``length_controlled_minimal``); theta and phi have a
normal prior with standard deviation 10, which matters only where the data do not bound them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.evaluation.intervals import Estimate, wilson_interval

__all__ = [
    "JudgedWinRate",
    "LengthFit",
    "fit_length",
    "length_controlled_win_rate",
    "win_rate_of_judgements",
]

_PRIOR_VARIANCE = 100.0
_STEPS = 100


@dataclass(frozen=True)
class JudgedWinRate:
    """How often a judge prefers ours.

    Attributes:
        rate: Share of pairs won, a tie as one half, with Wilson's interval.
        length_controlled: The same at equal lengths, with its bootstrap interval; None where
            lengths tell nothing of the judge, or there are fewer than two pairs.
        without_verdict: Pairs that are not counted, for the judge gave no verdict.
        position_bias: Share of pairs in which the same place won in both orders; None for a judge
            that sees one answer at a time.
    """

    rate: Estimate
    length_controlled: Estimate | None
    without_verdict: int = 0
    position_bias: Estimate | None = None


class LengthFit(NamedTuple):
    """A logistic regression of preferences on a constant and on length.

    Attributes:
        theta: How much better ours are at equal lengths; in log-odds.
        phi: How much the judge likes length; in log-odds.
    """

    theta: float
    phi: float


def win_rate_of_judgements(
    preferences: Sequence[float | None],
    completions: Sequence[str],
    other_completions: Sequence[str],
    *,
    position_bias: Estimate | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> JudgedWinRate:
    """Return how often a judge prefers ours, plain and at equal lengths.

    Args:
        preferences: 1 where ours is preferred, 0 where the other is, between for ties; None for no
            verdict.
        completions: Our answers; their lengths are counted in characters, as AlpacaEval does.
        other_completions: The others' answers to the same prompts.
        position_bias: That of the judge, which is handed on.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the numbers differ, or there is no verdict.
    """
    triples = [
        (preference, len(ours), len(others))
        for preference, ours, others in zip(
            preferences, completions, other_completions, strict=True
        )
        if preference is not None
    ]
    if not triples:
        raise ValueError("there is no verdict to count")
    wins, lengths, other_lengths = torch.tensor(triples, dtype=torch.float64).unbind(1)
    controlled = None
    if len(wins) > 1 and _lengths_tell(lengths - other_lengths):
        controlled = length_controlled_win_rate(
            wins, lengths, other_lengths, resamples=resamples, seed=seed
        )
    return JudgedWinRate(
        rate=wilson_interval(wins.sum().item(), len(wins)),
        length_controlled=controlled,
        without_verdict=len(preferences) - len(triples),
        position_bias=position_bias,
    )


def length_controlled_win_rate(
    preferences: Tensor,
    lengths: Tensor,
    other_lengths: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return the win rate at equal lengths, with its percentile bootstrap interval over prompts.

    Few pairs, or pairs that one side mostly wins, are alike in every resample. So the interval
    holds Wilson's of as many wins: a fit makes no rate better known than counting would.

    Args:
        preferences: 1 where ours is preferred, 0 where the other is, between for ties; (N,).
        lengths: Of our answers; (N,).
        other_lengths: Of the others', in the same unit; (N,).
        confidence: Coverage of the interval, between 0 and 1.
        resamples: Number of fits for the interval. The scale of lengths stays that of all pairs.
        seed: Of the resampling.

    Raises:
        ValueError: If the shapes differ, there are fewer than two pairs, a preference is not
            between 0 and 1, or all pairs differ in length by the same amount other than 0.
    """
    features = _features(preferences, lengths, other_lengths)
    wins, size = preferences.double().cpu(), len(features)
    whole = _fitted(features, wins, torch.ones(1, size, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(size, (resamples, size), generator=generator)
    counts = torch.zeros(resamples, size, dtype=torch.float64)
    counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    again = _fitted(features, wins, counts, whole.expand(resamples, 2))
    tail = (1 - confidence) / 2
    ends = again[:, 0].sigmoid().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    rate, (low, high) = whole[0, 0].sigmoid().item(), ends.tolist()
    counted = wilson_interval(rate * size, size, confidence=confidence)
    return Estimate(rate, min(low, counted.low), max(high, counted.high), size)


def fit_length(preferences: Tensor, lengths: Tensor, other_lengths: Tensor) -> LengthFit:
    """Return the fit behind ``length_controlled_win_rate``, whose arguments it takes."""
    features = _features(preferences, lengths, other_lengths)
    counts = torch.ones(1, len(features), dtype=torch.float64)
    return LengthFit(*_fitted(features, preferences.double().cpu(), counts)[0].tolist())


def _lengths_tell(differences: Tensor) -> bool:
    """Whether length differences vary, or are all 0: a constant cannot be told from quality."""
    return bool((differences == 0).all() or differences.std() > 0)


def _features(preferences: Tensor, lengths: Tensor, other_lengths: Tensor) -> Tensor:
    """Return (N, 2): a constant, and the squashed length difference in standard deviations."""
    shapes = {preferences.shape, lengths.shape, other_lengths.shape}
    if len(shapes) != 1 or preferences.dim() != 1 or len(preferences) < 2:
        raise ValueError(f"need three vectors of one length, at least 2, got {sorted(shapes)}")
    if not bool(((preferences >= 0) & (preferences <= 1)).all()):
        raise ValueError("a preference must lie between 0 and 1")
    differences = (lengths.double() - other_lengths.double()).cpu()
    if not _lengths_tell(differences):
        raise ValueError(
            f"all answers differ in length by {differences[0]:g}, so length cannot be told from "
            "quality"
        )
    squashed = torch.tanh(differences / differences.std().clamp(min=1e-300))
    return torch.stack([torch.ones_like(squashed), squashed], dim=1)


def _fitted(
    features: Tensor, preferences: Tensor, counts: Tensor, start: Tensor | None = None
) -> Tensor:
    """Return the weights of logistic regressions, each on its own selection of pairs.

    Newton's method on the penalised log-likelihood, which is concave; a step that does not improve
    it is halved.

    Args:
        features: (N, 2).
        preferences: (N,).
        counts: How often each pair counts, by fit; (R, N).
        start: Weights to begin with; (R, 2), None for 0.

    Returns:
        (R, 2).
    """
    weights = torch.zeros(len(counts), 2, dtype=torch.float64) if start is None else start
    squares = (features[:, :, None] * features[:, None]).flatten(1)
    prior = torch.eye(2, dtype=torch.float64) / _PRIOR_VARIANCE
    for _ in range(_STEPS):
        chances = (weights @ features.T).sigmoid()
        slope = (counts * (preferences - chances)) @ features - weights @ prior
        spread = counts * chances * (1 - chances)
        curvature = (spread @ squares).view(-1, 2, 2) + prior
        step = torch.linalg.solve(curvature, slope)
        moved = _improved(weights, step, features, preferences, counts)
        change = (moved - weights).abs().max()
        weights = moved
        if change < 1e-10:
            break
    return weights


def _improved(
    weights: Tensor, step: Tensor, features: Tensor, preferences: Tensor, counts: Tensor
) -> Tensor:
    """Return (R, 2) weights after a step that is halved until the likelihood does not fall."""

    def likelihood(at: Tensor) -> Tensor:
        logits = at @ features.T
        each = preferences * logsigmoid(logits) + (1 - preferences) * logsigmoid(-logits)
        return (counts * each).sum(1) - at.square().sum(1) / (2 * _PRIOR_VARIANCE)

    before = likelihood(weights)
    for _ in range(30):
        worse = likelihood(weights + step) < before - 1e-9  # more than rounding
        if not worse.any():
            break
        step = torch.where(worse[:, None], step / 2, step)
    return torch.where(worse[:, None], weights, weights + step)
