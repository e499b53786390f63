"""What the measured numbers are called on the page, which way is better, how they are written."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prefopt.evaluation import Estimate

__all__ = ["METRICS", "Metric", "decimals", "find_metric", "number"]


@dataclass(frozen=True)
class Metric:
    """A measured number.

    Attributes:
        name: Its key in ``MethodResult.metrics``.
        title: Head of its column.
        meaning: What it is, in a sentence.
        unit: After the title; ``%`` for shares, which are written times 100.
        better: Which way is better, or None where neither is.
        main: Whether it stands in the first table of the page.
    """

    name: str
    title: str
    meaning: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    main: bool = False

    @property
    def scale(self) -> float:
        """What a value is multiplied with before it is written."""
        return 100.0 if self.unit == "%" else 1.0


METRICS = (
    Metric(
        "accuracy",
        "Accuracy",
        "Held-out pairs in which the loss's own implicit reward ranks the chosen answer higher.",
        "%",
        "higher",
        True,
    ),
    Metric(
        "log_ratio_accuracy",
        "Log-ratio accuracy",
        "The same with the log-ratio of policy and start: one measure for every loss.",
        "%",
        "higher",
        True,
    ),
    Metric(
        "balanced_accuracy",
        "Length-balanced accuracy",
        "Accuracy on held-out pairs where the longer answer is chosen as often as the shorter one.",
        "%",
        "higher",
        True,
    ),
    Metric("reward", "Reward", "Mean reward of sampled answers.", "", "higher", True),
    Metric(
        "best_of_n_reward",
        "Best-of-N reward",
        "Mean reward of the best of several sampled answers.",
        "",
        "higher",
        True,
    ),
    Metric(
        "kl",
        "KL from the start",
        "How far the policy moved, over whole answers sampled at temperature 1.",
        "nats",
        None,
        True,
    ),
    Metric("completion_tokens", "Length", "Mean length of sampled answers.", "tokens", None, True),
    Metric(
        "margin",
        "Margin",
        "Mean log-ratio of the chosen answer minus that of the rejected one.",
        "nats",
    ),
    Metric(
        "chosen_log_ratio",
        "Chosen log-ratio",
        "How much more probable the chosen answers are than at the start; below 0 they are less.",
        "nats",
    ),
    Metric(
        "rejected_log_ratio",
        "Rejected log-ratio",
        "The same of the rejected answers.",
        "nats",
    ),
    Metric(
        "margin_length_correlation",
        "Margin and length",
        "Correlation of a pair's margin with its difference in length; at 0, length plays no part.",
    ),
    Metric(
        "start_agreement",
        "Agreement with the start",
        "Held-out pairs ranked as the start's own log-probs rank them.",
        "%",
    ),
    Metric("distinct_1", "Distinct words", "Share of distinct words in sampled answers.", "%"),
    Metric("distinct_2", "Distinct word pairs", "Share of distinct pairs of words.", "%"),
    Metric(
        "truncated",
        "Cut answers",
        "Share of sampled answers that were cut at the longest length allowed.",
        "%",
        "lower",
    ),
)
_BY_NAME = {metric.name: metric for metric in METRICS}


def find_metric(name: str) -> Metric:
    """Return how a metric is shown; one that is not known here goes by its own name.

    Args:
        name: Its key in ``MethodResult.metrics``.
    """
    return _BY_NAME.get(name, Metric(name, name, f"The measured number {name}."))


def decimals(estimates: Iterable[Estimate], metric: Metric) -> int:
    """Return how many decimals a column needs, by the half width of its middle interval.

    Two digits of a half width up to 0.35, 3.5, ... are shown and one of a larger one, as in the
    tables of the Particle Data Group; shares have one decimal at least.

    Args:
        estimates: The numbers of the column.
        metric: What they measure.

    >>> decimals([Estimate(1.31, 1.23, 1.39, 500)], find_metric("reward"))
    2
    """
    halves = sorted(
        (it.high - it.low) / 2 * metric.scale for it in estimates if 0 < it.high - it.low < math.inf
    )
    if not halves:
        return 2
    half = halves[len(halves) // 2]
    exponent = math.floor(math.log10(half))
    places = -exponent + int(half / 10.0**exponent < 3.55)
    return min(4, max(1 if metric.unit == "%" else 0, places))


def number(value: float, places: int) -> str:
    """Return a number as text, with a proper minus sign.

    Args:
        value: The number; NaN and infinities are written as words.
        places: Decimals.

    >>> number(-0.25, 1), number(float("nan"), 1), number(-0.001, 1)
    ('−0.2', 'not a number', '0.0')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{places}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")
