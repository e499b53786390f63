"""Methods that only a run, a curve or a win rate names, and names too long for a page."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from prefopt.compare.results import (
    Comparison,
    Curve,
    Diagnosis,
    MethodResult,
    RunRecord,
    Sample,
    WinRate,
)

__all__ = ["LONGEST_NAME", "short_names", "with_all_methods", "with_names"]

LONGEST_NAME = 48  # letters of a name in tables and charts
_Named = TypeVar("_Named", Curve, Diagnosis, RunRecord, Sample, WinRate)


def with_all_methods(comparison: Comparison) -> Comparison:
    """Return a comparison that lists every method of its runs, curves, win rates and diagnoses.

    A method whose runs all failed may have no result; it must not vanish from the page for that.

    Args:
        comparison: What was found.

    Raises:
        ValueError: If two methods have one name.
    """
    counts = Counter(it.name for it in comparison.methods)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"each method needs a name of its own; there are two called {twice[0]!r}")
    known = set(counts)
    parts = (comparison.runs, comparison.curves, comparison.win_rates, comparison.diagnoses)
    named = dict.fromkeys(it.method for part in parts for it in part if it.method not in known)
    others = tuple(MethodResult(name, name) for name in named)
    return replace(comparison, methods=(*comparison.methods, *others))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name of at most ``LONGEST_NAME`` letters for each, all different.

    A long name loses its middle, for the end tells methods apart as often as the beginning.

    Args:
        names: All different.
    """
    short: dict[str, str] = {}
    for name in names:
        cut, count = _cut(name, LONGEST_NAME), 1
        while cut in short.values():
            count += 1
            ending = f" ({count})"
            cut = _cut(name, LONGEST_NAME - len(ending)) + ending
        short[name] = cut
    return short


def _cut(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[: most - 1 - half]}…{name[-half:]}"


def with_names(comparison: Comparison, names: Mapping[str, str]) -> Comparison:
    """Return a comparison whose methods have other names, in all its parts.

    Args:
        comparison: What was found.
        names: The new name of each method by its old one; what is not listed keeps its name.
    """

    def renamed(parts: tuple[_Named, ...]) -> tuple[_Named, ...]:
        return tuple(replace(it, method=names.get(it.method, it.method)) for it in parts)

    def new(name: str) -> str:
        return names.get(name, name)

    return replace(
        comparison,
        methods=tuple(replace(it, name=new(it.name)) for it in comparison.methods),
        tests=tuple(
            replace(it, first=new(it.first), second=new(it.second)) for it in comparison.tests
        ),
        curves=renamed(comparison.curves),
        win_rates=renamed(comparison.win_rates),
        diagnoses=renamed(comparison.diagnoses),
        samples=renamed(comparison.samples),
        runs=renamed(comparison.runs),
    )
