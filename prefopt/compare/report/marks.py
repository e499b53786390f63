"""Which values of a column are the best, and which cannot be told from the best."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from prefopt.compare.results import PairedTest
from prefopt.evaluation import Estimate

__all__ = ["SIGNIFICANT", "Mark", "marks"]

Mark = Literal["best", "tied"]
SIGNIFICANT = 0.05  # largest corrected p-value at which two methods are called different


def marks(
    values: Mapping[str, Estimate],
    better: Literal["higher", "lower"] | None,
    tests: Sequence[PairedTest],
) -> dict[str, Mark]:
    """Return the best method and those that are not distinguishable from it.

    A method is distinguishable if its paired test against the best has a corrected p-value below
    0.05; where the two were not tested, if their intervals do not overlap.

    Args:
        values: One number for each method.
        better: Which way is better; with None nothing is marked.
        tests: Paired tests of this metric.
    """
    known = {name: value for name, value in values.items() if not math.isnan(value.value)}
    if better is None or len(known) < 2:
        return {}
    pick = max if better == "higher" else min
    best = pick(known, key=lambda name: known[name].value)
    tested = {frozenset((test.first, test.second)): test.p_adjusted for test in tests}
    found: dict[str, Mark] = {}
    for name, value in known.items():
        p = tested.get(frozenset((name, best)))
        if name == best:
            found[name] = "best"
        elif _overlap(value, known[best]) if p is None else p >= SIGNIFICANT:
            found[name] = "tied"
    return found


def _overlap(first: Estimate, second: Estimate) -> bool:
    return first.low <= second.high and second.low <= first.high
