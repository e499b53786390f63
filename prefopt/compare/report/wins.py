"""Win rate over temperature; of one temperature, by method."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import altair as alt

from prefopt.compare.report.forest import method_intervals, vertical_line
from prefopt.compare.report.metrics import Metric
from prefopt.compare.report.tables import opponent_title
from prefopt.compare.report.vega import (
    INK,
    SHOWN,
    Chart,
    is_finite,
    look_scales,
    rows_named,
    spec_of,
    text_of,
)
from prefopt.compare.results import Comparison

__all__ = ["win_rates"]

HALF = "the dotted line is 50%"
SIDE_BY_SIDE = "Points of one temperature stand side by side so that no interval hides another."


def win_rates(comparison: Comparison) -> Iterable[Chart]:
    """Yield win rate over temperature, or by method if there is but one; a chart for each opponent.

    Args:
        comparison: What was found.
    """
    for against in sorted({it.against for it in comparison.win_rates}):
        rows = _rows(comparison, against)
        if not rows:
            continue
        temperatures = {row["temperature"] for row in rows}
        if len(temperatures) == 1:
            said = f"Temperature {temperatures.pop():g}."
            spec = spec_of(_by_method(comparison), height=alt.Step(22), rows=rows)
        else:
            said = SIDE_BY_SIDE
            spec = spec_of(_layers(comparison, rows), height=320, rows=rows)
        yield Chart(
            f"win_rate_{against}",
            "wins",
            f"Win rate against {opponent_title(against)}",
            f"Share of prompts on which the judge prefers the method, a tie as one half; {HALF}. "
            f"{said}",
            spec,
        )


def _by_method(comparison: Comparison) -> list[Any]:
    """Return the line of 50%, intervals and points: methods down, prompts won across."""
    tip = [alt.Tooltip(f"{it}:N") for it in ("method", "won")]
    x = alt.X("rate:Q", title="Prompts won, %", scale=alt.Scale(zero=False))
    return [vertical_line(50, (2, 3)), *method_intervals(comparison, x, tip)]


def _layers(comparison: Comparison, rows: list[dict[str, Any]]) -> list[Any]:
    """Return the line of 50%, lines over temperature, intervals and points."""
    colour, shape = look_scales(comparison)
    tip = [alt.Tooltip(f"{it}:N") for it in ("method", "temperature", "won")]
    base = rows_named("rows").transform_filter(SHOWN).encode(color=colour, tooltip=tip)
    ticks = alt.Axis(
        values=sorted({row["temperature"] for row in rows}),
        labelExpr="'' + datum.value",
        grid=False,
    )
    scale = alt.Scale(zero=False, nice=False, padding=12)
    x = alt.X("at:Q", title="Temperature", scale=scale, axis=ticks)
    y = alt.Y("rate:Q", title="Prompts won, %", scale=alt.Scale(zero=False))
    half = alt.Chart(alt.Data(values=[{"at": 50}])).encode(y="at:Q")
    return [
        half.mark_rule(strokeDash=[2, 3], color=INK, strokeWidth=1.5),
        base.mark_line(strokeWidth=1.5).encode(x=x, y=y),
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, shape=shape),
    ]


def _rows(comparison: Comparison, against: str) -> list[dict[str, Any]]:
    """Return the win rates against one opponent, each method a little to the side of the last."""
    rates = [it for it in comparison.win_rates if it.against == against and is_finite(it.rate)]
    names = [it.name for it in comparison.methods]
    there = [name for name in names if name in {it.method for it in rates}]
    temperatures = sorted({it.temperature for it in rates})
    gaps = [b - a for a, b in pairwise(temperatures)] or [0.0]
    unit = 0.4 * min(gaps) / max(len(there) - 1, 1)
    percent = Metric("win_rate", "Win rate", "", "%")
    return [
        {
            "method": it.method,
            "temperature": it.temperature,
            "at": round(it.temperature + unit * (there.index(it.method) - (len(there) - 1) / 2), 4),
            "rate": it.rate.value * 100,
            "low": it.rate.low * 100,
            "high": it.rate.high * 100,
            "won": text_of(it.rate, percent),
        }
        for it in rates
    ]
