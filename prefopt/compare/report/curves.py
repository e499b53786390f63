"""Curves of training, with bands over seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import altair as alt

from prefopt.compare.report.series import bands, curve_metrics, unfinite
from prefopt.compare.report.vega import SHOWN, Chart, look_scales, rows_named, spec_of
from prefopt.compare.results import Comparison, Curve

__all__ = ["curves"]


def curves(comparison: Comparison) -> Iterable[Chart]:
    """Yield one chart for each logged metric.

    Args:
        comparison: What was found.
    """
    series = len({(it.method, it.metric) for it in comparison.curves})
    for metric in curve_metrics(comparison.curves):
        its = [it for it in comparison.curves if it.metric == metric]
        rows = _rows(comparison, its, series)
        if rows:
            scale = "log" if _is_wide(rows) else "linear"
            spec = spec_of(_layers(comparison, scale), height=220, rows=rows)
            yield Chart(f"curve_{metric}", "training", metric, _caption(metric, scale, its), spec)


def _rows(comparison: Comparison, its: Sequence[Curve], series: int) -> list[dict[str, Any]]:
    """Return the points of all methods; a method is its number, for names would fill the page."""
    numbers = {it.name: place for place, it in enumerate(comparison.methods)}
    return [
        {"m": numbers[method], "s": point.step, "v": _short(point.mean)}
        | ({"l": _short(point.low), "h": _short(point.high)} if several else {})
        for method, points in bands(its, series).items()
        for several in [any(point.low < point.high for point in points)]
        for point in points
    ]


def _is_wide(rows: Sequence[Mapping[str, float]]) -> bool:
    """Return whether methods differ so much that a linear scale would flatten some of them."""
    if min(row.get("l", row["v"]) for row in rows) <= 0:
        return False
    methods = {row["m"] for row in rows}
    middles = [median(row["v"] for row in rows if row["m"] == method) for method in methods]
    return max(middles) > 8 * min(middles)


def _layers(comparison: Comparison, scale: str) -> list[Any]:
    """Return bands, paler the more there are, and lines."""
    colour, _ = look_scales(comparison)
    names = [it.name for it in comparison.methods]
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("s:Q", title="step"),
        alt.Tooltip("v:Q", title="mean"),
    ]
    base = (
        rows_named("rows")
        .transform_calculate(method=f"{json.dumps(names)}[datum.m]")
        .transform_filter(SHOWN)
        .encode(x=alt.X("s:Q", title="Step"), color=colour)
    )
    kind = alt.Scale(type=scale, zero=False)
    y = alt.Y("v:Q", title=None, scale=kind)
    return [
        # Of the fill: as an opacity of the whole mark, a PNG would take twice the time.
        base.mark_area(opacity=1, fillOpacity=min(0.2, 2 / len(names))).encode(
            y=alt.Y("l:Q", scale=kind), y2="h:Q"
        ),
        base.mark_line(strokeWidth=1.75).encode(y=y, tooltip=tip),
    ]


def _caption(metric: str, scale: str, its: Sequence[Curve]) -> str:
    count = unfinite(its)
    parts = {
        "Losses of different methods are in different units.": metric in ("loss", "eval_loss"),
        "The scale is logarithmic.": scale == "log",
        f"Not drawn, because not finite: {count:,} of the logged values.": count,
    }
    return " ".join(text for text, is_so in parts.items() if is_so)


def _short(value: float) -> float:
    """Return a value with the digits that a chart can show: half of them would be the file."""
    return float(f"{value:.5g}")
