"""The tables of the page: methods down, measured numbers across, best values marked."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefopt.compare.report.marks import Mark, marks
from prefopt.compare.report.metrics import METRICS, Metric, decimals, find_metric, number
from prefopt.compare.report.rules import rule_title, rules_of
from prefopt.compare.results import Comparison, MethodResult
from prefopt.evaluation import Estimate

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Table",
    "detail_table",
    "main_table",
    "main_temperature",
    "win_rate_table",
]

_JUDGED = {"chosen": "the data's answers", "start": "the start"}


class Cell(NamedTuple):
    """A number of a table; without a value it was not measured."""

    value: float | None
    text: str
    interval: str
    mark: Mark | None
    hint: str


_NOTHING = Cell(None, "", "", None, "")  # where a number would have no meaning


class Column(NamedTuple):
    """The head of a column."""

    metric: Metric
    sizes: str


class Row(NamedTuple):
    """A method, or a rule that needs no model, and its numbers."""

    name: str
    note: str
    is_baseline: bool
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """Columns, rows of methods, and rows of rules that need no training."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    rules: tuple[Row, ...]

    @property
    def has_marks(self) -> bool:
        """Whether a value is marked."""
        return any(cell.mark for row in self.rows for cell in row.cells)


class _Values(NamedTuple):
    """A column's numbers: of methods, and of rules."""

    metric: Metric
    methods: Mapping[str, Estimate]
    rules: Mapping[str, Estimate] = {}


def main_table(comparison: Comparison) -> Table:
    """Return the table of what decides: accuracies, reward, KL, length, win rates.

    Args:
        comparison: What was found.
    """
    columns = [_measured(comparison, metric) for metric in METRICS if metric.main]
    temperature = main_temperature(comparison)
    for against in _opponents(comparison):
        title = f"Wins against {_JUDGED.get(against, against)}"
        meaning = f"Prompts won at temperature {temperature:g}, a tie as one half."
        columns.append(
            _Values(
                Metric(f"win_rate_{against}", title, meaning, "%", "higher", True),
                {
                    it.method: it.rate
                    for it in comparison.win_rates
                    if (it.against, it.temperature) == (against, temperature)
                },
            )
        )
    return _table(comparison, columns)


def detail_table(comparison: Comparison) -> Table:
    """Return the table of all other numbers, those that this package does not know included.

    Args:
        comparison: What was found.
    """
    known = {metric.name for metric in METRICS}
    others = {name: 0 for method in comparison.methods for name in method.metrics}
    metrics = [metric for metric in METRICS if not metric.main]
    metrics += [find_metric(name) for name in others if name not in known]
    return _table(comparison, [_measured(comparison, metric) for metric in metrics])


def win_rate_table(comparison: Comparison, against: str) -> Table:
    """Return win rates by temperature, plain and at equal lengths.

    Args:
        comparison: What was found.
        against: The opponent.
    """
    columns = []
    rates = [it for it in comparison.win_rates if it.against == against]
    for temperature in sorted({it.temperature for it in rates}):
        here = [it for it in rates if it.temperature == temperature]
        title = f"Temperature {temperature:g}"
        plain = Metric(f"t{temperature:g}", title, "A tie counts one half.", "%", "higher")
        columns.append(_Values(plain, {it.method: it.rate for it in here}))
        equal = Metric(
            f"lc{temperature:g}",
            f"{title}, equal lengths",
            "Length-controlled win rate (Dubois et al. 2024).",
            "%",
            "higher",
        )
        controlled = {it.method: it.length_controlled for it in here if it.length_controlled}
        columns.append(_Values(equal, controlled))
    return _table(comparison, columns)


def main_temperature(comparison: Comparison) -> float:
    """Return the temperature whose win rates stand in the main table: 1, or else the highest.

    Args:
        comparison: What was found.
    """
    temperatures = {it.temperature for it in comparison.win_rates}
    return 1.0 if 1.0 in temperatures else max(temperatures, default=1.0)


def opponent_title(name: str) -> str:
    """Return whom ``WinRate.against`` names, in words.

    Args:
        name: The opponent.
    """
    return _JUDGED.get(name, name)


def _opponents(comparison: Comparison) -> list[str]:
    return sorted({it.against for it in comparison.win_rates})


def _measured(comparison: Comparison, metric: Metric) -> _Values:
    measured = {
        method.name: method.metrics[metric.name]
        for method in comparison.methods
        if metric.name in method.metrics
    }
    rules = rules_of(metric.name, comparison.data_baselines)
    # Where no method was measured, the rules still have one column.
    return _Values(metric, measured, rules if measured or metric.name == "accuracy" else {})


def _table(comparison: Comparison, columns: Sequence[_Values]) -> Table:
    columns = [column for column in columns if column.methods or column.rules]
    cells = [_cells(comparison, column) for column in columns]
    methods = [
        Row(it.name, _note(comparison, it), it.is_baseline, tuple(of[it.name] for of, _ in cells))
        for it in comparison.methods
    ]
    rules = [
        Row(rule_title(name), "", True, tuple(of[name] for _, of in cells))
        for name in comparison.data_baselines
        if any(name in column.rules for column in columns)
    ]
    heads = tuple(Column(column.metric, _sizes(column)) for column in columns)
    return Table(heads, tuple(methods), tuple(rules))


def _cells(comparison: Comparison, column: _Values) -> tuple[dict[str, Cell], dict[str, Cell]]:
    """Return the cells of a column by method and by rule."""
    tests = [test for test in comparison.tests if test.metric == column.metric.name]
    marked = marks(column.methods, column.metric.better, tests)
    scale = column.metric.scale
    places = decimals([*column.methods.values(), *column.rules.values()], column.metric)
    of_methods = {
        it.name: _cell(column.methods.get(it.name), scale, places, marked.get(it.name))
        for it in comparison.methods
    }
    of_rules = {
        name: _cell(column.rules[name], scale, places, None) if name in column.rules else _NOTHING
        for name in comparison.data_baselines
    }
    return of_methods, of_rules


def _cell(estimate: Estimate | None, scale: float, places: int, mark: Mark | None) -> Cell:
    if estimate is None:
        return Cell(None, "–", "", None, "not measured")
    low, high = (number(end * scale, places) for end in (estimate.low, estimate.high))
    text = number(estimate.value * scale, places)
    hint = f"{estimate.size:,} observations"
    return Cell(estimate.value, text, f"[{low}, {high}]", mark, hint)


def _sizes(column: _Values) -> str:
    """Return how many observations the numbers of a column come from."""
    sizes = sorted({it.size for it in (*column.methods.values(), *column.rules.values())})
    if not sizes:
        return ""
    return f"n = {sizes[0]:,}" if len(sizes) == 1 else f"n = {sizes[0]:,} to {sizes[-1]:,}"


def _note(comparison: Comparison, method: MethodResult) -> str:
    """Return what of a method's runs is missing."""
    states = [run.state for run in comparison.runs if run.method == method.name]
    missing = [
        f"{states.count(it)} {it}" for it in ("failed", "running", "waiting") if it in states
    ]
    return f"{', '.join(missing)} of {len(states)} runs" if missing else ""
