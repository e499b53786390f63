"""Training curves made ready to be drawn: mean and range over seeds, few enough points."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from prefopt.compare.results import Curve

__all__ = ["MOST_POINTS", "Band", "bands", "curve_metrics", "unfinite"]

MOST_POINTS = 16_000  # of all curves of a page: at 45 bytes a point, about 0.7 MB
_FEWEST, _ENOUGH = 12, 200  # points of one curve
# The order of the page; what is not listed follows by name.
_FIRST = (
    "eval_rewards/accuracies",
    "rewards/accuracies",
    "eval_rewards/margins",
    "rewards/margins",
    "eval_loss",
    "loss",
    "eval_logps/chosen",
    "logps/chosen",
    "eval_logps/rejected",
    "logps/rejected",
)


class Band(NamedTuple):
    """A point of a method's curve: the mean over seeds, and the smallest and largest seed."""

    step: int
    mean: float
    low: float
    high: float


def curve_metrics(curves: Sequence[Curve]) -> list[str]:
    """Return the logged metrics in the order in which they are shown.

    Args:
        curves: Of all methods.
    """
    found = {curve.metric for curve in curves}
    return [it for it in _FIRST if it in found] + sorted(found - set(_FIRST))


def unfinite(curves: Sequence[Curve]) -> int:
    """Return how many values cannot be drawn because they are not finite.

    Args:
        curves: Any.
    """
    return sum(not math.isfinite(value) for curve in curves for value in curve.values)


def bands(curves: Sequence[Curve], series: int) -> dict[str, list[Band]]:
    """Return the curve of each method, thinned to what one page can hold.

    Neighbouring steps share a point where there are too many: it has their mean, seed by seed, and
    the last of their steps.

    Args:
        curves: Of one metric, of all methods and seeds.
        series: How many lines, of all metrics and methods, share the page.
    """
    most = min(_ENOUGH, max(_FEWEST, MOST_POINTS // max(series, 1)))
    methods: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        methods[curve.method].append(curve)
    return {method: _band(its, most) for method, its in methods.items()}


def _band(curves: Sequence[Curve], most: int) -> list[Band]:
    """Return the points of one method."""
    seeds = [
        {step: it for step, it in zip(curve.steps, curve.values, strict=True) if math.isfinite(it)}
        for curve in curves
    ]
    steps = sorted({step for seed in seeds for step in seed})
    width = math.ceil(len(steps) / most) or 1
    points = []
    for start in range(0, len(steps), width):
        shared = steps[start : start + width]
        means = [
            _mean(there) for seed in seeds if (there := [seed[s] for s in shared if s in seed])
        ]
        points.append(Band(shared[-1], _mean(means), min(means), max(means)))
    return points


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
