"""All charts of a comparison, in the order of the page."""

from collections.abc import Callable, Iterable
from itertools import count

from prefopt.compare.report.curves import curves
from prefopt.compare.report.forest import accuracies, displacement, lengths
from prefopt.compare.report.frontier import frontier
from prefopt.compare.report.vega import Chart
from prefopt.compare.report.wins import win_rates
from prefopt.compare.results import Comparison

__all__ = ["all_charts"]

_MAKERS: tuple[Callable[[Comparison], Iterable[Chart]], ...] = (
    accuracies,
    frontier,
    win_rates,
    curves,
    lengths,
    displacement,
)


def all_charts(comparison: Comparison) -> list[Chart]:
    """Return every chart for which there are numbers, each with a name of its own.

    Args:
        comparison: What was found.
    """
    found: dict[str, Chart] = {}  # by name in small letters, for file systems that know no others
    for chart in (chart for maker in _MAKERS for chart in maker(comparison)):
        safe = "".join(it if it.isascii() and it.isalnum() else "_" for it in chart.name)[:80]
        names = (safe if place == 1 else f"{safe}_{place}" for place in count(1))
        name = next(it for it in names if it.lower() not in found)
        found[name.lower()] = chart._replace(name=name)
    return list(found.values())
