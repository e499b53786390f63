"""The answer in two sentences, its uncertainty included."""

from collections.abc import Mapping, Sequence

from prefopt.compare.report.rules import rule_title, rules_of
from prefopt.compare.results import MethodResult, PairedTest
from prefopt.evaluation import Estimate

__all__ = ["write_verdict"]

LEVEL = 0.05  # p-values below it, corrected for the number of tests, tell methods apart
NAMED = 3  # of the worse methods, as many are named one by one


def write_verdict(
    methods: Sequence[MethodResult],
    tests: Sequence[PairedTest],
    rules: Mapping[str, Estimate] | None = None,
) -> str:
    """Return which methods order held-out pairs best, and which are worse; baselines beside them.

    Args:
        methods: All methods; the losses are judged, and the best baselines named.
        tests: Of every two of them, by ``accuracy``.
        rules: Accuracy of rules that need no training, by name. It is said if one does as well as
            the best method.
    """
    ranked = sorted(
        (one for one in methods if not one.is_baseline and "accuracy" in one.metrics),
        key=lambda one: -one.metrics["accuracy"].value,
    )
    if not ranked:
        return "No method was measured."
    best = ranked[0]
    beside = _untrained(best, rules or {}) + _beside(best, methods, tests)
    if len(ranked) == 1:
        return f"{best.name} orders {_accuracy(best)} of the held-out pairs as the data do.{beside}"
    found = {one.name: _between(best.name, one.name, tests) for one in ranked[1:]}
    alike = [one for one in ranked[1:] if found[one.name].p_adjusted >= LEVEL]
    worse = [one for one in ranked[1:] if found[one.name].p_adjusted < LEVEL]
    return f"{_first(best, alike, found)} {_second(worse, found)}{beside}"


def _first(best: MethodResult, alike: Sequence[MethodResult], found: dict[str, PairedTest]) -> str:
    if not alike:
        return f"{best.name} is best: it orders {_accuracy(best)} of the held-out pairs rightly."
    names = _listed([best.name, *(one.name for one in alike)])
    numbers = _listed([_accuracy(one) for one in (best, *alike)])
    least = min(found[one.name].p_adjusted for one in alike)
    these = _p(least) if len(alike) == 1 else _p(least).replace("=", "≥")
    return f"{names} are indistinguishable (accuracy {numbers}, {these})."


def _second(worse: Sequence[MethodResult], found: dict[str, PairedTest]) -> str:
    if not worse:
        return "No method is worse beyond the uncertainty of the held-out rows and seeds."
    told = [f"{one.name} by {_points(found[one.name])}" for one in worse]
    if len(worse) <= NAMED:
        return f"Worse {'is' if len(worse) == 1 else 'are'} {_listed(told)}."
    return f"Worse are {len(worse)} others, from {told[0]} to {told[-1]}."


def _points(test: PairedTest) -> str:
    value, low, high = (100 * number for number in _loss(test))
    interval = f"95% interval {low:.1f} to {high:.1f}"
    return f"{value:.1f} points ({interval}, {_p(test.p_adjusted)})"


def _untrained(best: MethodResult, rules: Mapping[str, Estimate]) -> str:
    """Return a sentence on the best rule that needs no training, if no method is beyond it."""
    its = rules_of("accuracy", rules)
    name = max(its, key=lambda rule: its[rule].value, default=None)
    if name is None or its[name].value < best.metrics["accuracy"].low:
        return ""
    share = f"{100 * its[name].value:.1f}%"
    return f" None is beyond what needs no training: {rule_title(name)} is right in {share}."


def _beside(
    best: MethodResult, methods: Sequence[MethodResult], tests: Sequence[PairedTest]
) -> str:
    """Return a sentence on the best baselines, if there are others than the start."""
    baselines = [one for one in methods if one.is_baseline and one.loss != "start"]
    parts = []
    if order := [one for one in baselines if "accuracy" in one.metrics]:
        top = max(order, key=lambda one: one.metrics["accuracy"].value)
        p = _p(_between(best.name, top.name, tests).p_adjusted)
        parts.append(f"{top.name} orders {_accuracy(top)} rightly ({p} against {best.name})")
    rewarded = [one for one in methods if "reward" in one.metrics and one.loss != "start"]
    of_baselines = [one for one in rewarded if one.is_baseline]
    of_losses = [one for one in rewarded if not one.is_baseline]
    if of_baselines and of_losses:
        top, other = (
            max(its, key=lambda one: one.metrics["reward"].value)
            for its in (of_baselines, of_losses)
        )
        parts.append(
            f"{top.name} has the highest reward, {_reward(top)}; "
            f"of the losses {other.name} has it, {_reward(other)}"
        )
    return f" Of the baselines, {_listed(parts)}." if parts else ""


def _reward(method: MethodResult) -> str:
    value, low, high, _ = method.metrics["reward"]
    return f"{value:.2f} (95% interval {low:.2f} to {high:.2f})"


def _between(best: str, other: str, tests: Sequence[PairedTest]) -> PairedTest:
    return next(test for test in tests if {test.first, test.second} == {best, other})


def _loss(test: PairedTest) -> tuple[float, float, float]:
    """Return by how much the worse of two is worse, with the interval."""
    value, low, high, _ = test.difference
    return (value, low, high) if value >= 0 else (-value, -high, -low)


def _accuracy(method: MethodResult) -> str:
    return f"{100 * method.metrics['accuracy'].value:.1f}%"


def _p(p: float) -> str:
    """Return a p-value for people.

    >>> _p(0.0314), _p(0.00001), _p(0.618)
    ('p = 0.03', 'p < 0.001', 'p = 0.62')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.1g}" if p < 0.1 else f"p = {p:.2f}"


def _listed(parts: Sequence[str]) -> str:
    """Return parts with commas and an and.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
