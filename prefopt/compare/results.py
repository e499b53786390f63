"""What a comparison found: plain records, one JSON file, and all that its report shows.

Whoever measures fills them and whoever draws reads them; neither knows the other.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from prefopt.evaluation import Estimate, FrontierPoint

__all__ = [
    "Comparison",
    "Curve",
    "Diagnosis",
    "MethodResult",
    "PairedTest",
    "RunRecord",
    "Sample",
    "WinRate",
]


@dataclass(frozen=True)
class RunRecord:
    """One run: a method with one seed.

    Attributes:
        name: Its folder under ``runs``; ends with a digest of its configuration.
        method: The method it is of.
        seed: Of data order and weights.
        state: ``done``, ``failed``, ``running`` or ``waiting``.
        command: A command that repeats it.
        seconds: What it took; None before its end.
        tokens: Tokens that training saw; None before its end.
        error: Why it failed, the last line of what it printed.
    """

    name: str
    method: str
    seed: int
    state: str
    command: str
    seconds: float | None = None
    tokens: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class MethodResult:
    """A method over its seeds.

    Attributes:
        name: Unique, and short enough for a legend: ``dpo beta=0.1``.
        loss: What was trained, such as ``dpo + 0.2*sft``; for a baseline, its kind.
        options: The other options that tell it from other methods.
        is_baseline: Whether it stands beside the losses: the start, SFT, best-of-N, RL.
        metrics: Each measured number with its interval, pooled over seeds; names in
            ``prefopt.evaluation``.
        by_seed: The same numbers of each seed, by metric; in the order of its runs.
    """

    name: str
    loss: str
    options: Mapping[str, Any] = field(default_factory=dict)
    is_baseline: bool = False
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    by_seed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedTest:
    """Whether two methods differ, on the same held-out rows.

    Attributes:
        first: A method.
        second: Another.
        metric: What was compared.
        difference: First minus second, with its paired bootstrap interval.
        p: Two-sided p-value.
        p_adjusted: The same, corrected for all the comparisons made.
    """

    first: str
    second: str
    metric: str
    difference: Estimate
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class Curve:
    """A number along the training of one run.

    Attributes:
        method: The method.
        seed: The run's seed.
        metric: What is logged, such as ``loss`` or ``eval_rewards/margins``.
        steps: Optimiser steps.
        values: One for each step.
    """

    method: str
    seed: int
    metric: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class WinRate:
    """How often a judge prefers a method's answers.

    Attributes:
        method: The method.
        against: ``chosen`` (the data's answers) or ``start``.
        temperature: Of the samples.
        rate: Share of prompts won, a tie as one half.
        length_controlled: The same at equal lengths (Dubois et al. 2024); None where not fitted.
    """

    method: str
    against: str
    temperature: float
    rate: Estimate
    length_controlled: Estimate | None = None


@dataclass(frozen=True)
class Diagnosis:
    """A warning about a method, or that there is no reason for one.

    Attributes:
        method: The method.
        name: Such as ``likelihood displacement``.
        fires: Whether the user should look.
        text: What was seen, in plain words with its numbers.
    """

    method: str
    name: str
    fires: bool
    text: str


@dataclass(frozen=True)
class Sample:
    """An answer of a method.

    Attributes:
        prompt: What was asked, as text.
        method: Who answered; ``chosen`` for the data's own answer.
        completion: The answer.
        temperature: Of the sample; None for the data's own.
        reward: A judge's or reward function's score; None without one.
        tokens: Its length.
        truncated: Whether it was cut at the longest length allowed.
    """

    prompt: str
    method: str
    completion: str
    temperature: float | None = None
    reward: float | None = None
    tokens: int | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Comparison:
    """A whole comparison.

    Attributes:
        title: Headline of the report.
        created: Date and time, ISO 8601.
        command: A command that repeats it.
        spec: What was asked for.
        versions: Of prefopt, torch and the like, and the machine.
        verdict: The answer in two sentences, its uncertainty included.
        methods: All methods, the start first where it was measured.
        data_baselines: Accuracy of rules that look at lengths, and of the start's log-probs, by
            name: ``longer``, ``shorter``, ``start``; and mean rewards of the data's own answers,
            ``chosen_reward`` and ``rejected_reward``, where there is a reward.
        tests: Between methods.
        frontier: Best reachable reward by KL, where it is known.
        curves: Of training.
        win_rates: By a judge.
        diagnoses: One for each method and kind.
        samples: Side by side.
        runs: All runs of the matrix.
    """

    title: str
    created: str
    command: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""
    methods: tuple[MethodResult, ...] = ()
    data_baselines: Mapping[str, Estimate] = field(default_factory=dict)
    tests: tuple[PairedTest, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    curves: tuple[Curve, ...] = ()
    win_rates: tuple[WinRate, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    samples: tuple[Sample, ...] = ()
    runs: tuple[RunRecord, ...] = ()

    def save(self, path: Path) -> None:
        """Write everything as JSON.

        Args:
            path: The file, replaced if it exists.
        """
        path.write_text(json.dumps(asdict(self), indent=1, allow_nan=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Comparison":
        """Read what ``save`` wrote.

        Args:
            path: The file.
        """
        comparison: Comparison = _restored(cls, json.loads(path.read_text(encoding="utf-8")))
        return comparison


def _restored(kind: Any, value: Any) -> Any:
    """Return a JSON value as what a record's annotation says it is."""
    origin, arguments = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if origin in (Union, UnionType):
        return _restored(next(part for part in arguments if part is not type(None)), value)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {item.name for item in fields(kind)}
        given = {
            name: _restored(hints[name], item) for name, item in value.items() if name in known
        }
        return kind(**given)  # type: ignore[operator] # a dataclass is callable
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        return kind(*value)
    if origin is tuple:
        return tuple(_restored(arguments[0], item) for item in value)
    if origin is Mapping and len(arguments) == 2:
        return {name: _restored(arguments[1], item) for name, item in value.items()}
    return value
