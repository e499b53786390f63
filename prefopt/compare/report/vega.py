"""What the charts share: Vega-Lite with the page's data, and a look for each method.

Why Vega-Lite and not Plotly: the page embeds the library once, and that is 0.90 MB (Vega 6,
Vega-Lite 6.4, vega-embed 7 as vl-convert 1.9 bundles them) instead of 4.82 MB (plotly.min.js of
plotly 7.1), which alone would nearly fill the 5 MB that a page may have. The same package draws
the PNGs without a browser.

A chart of the page has no legend: one key of buttons stands for all, and tells each chart by its
parameter ``hidden`` which methods not to show. PNGs have a legend of their own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import altair as alt

from prefopt.compare.report.metrics import Metric, number
from prefopt.compare.report.palette import looks
from prefopt.compare.results import Comparison
from prefopt.evaluation import Estimate

__all__ = [
    "INK",
    "SHOWN",
    "Chart",
    "axis_title",
    "is_finite",
    "look_scales",
    "method_axis",
    "rows_named",
    "spec_of",
    "text_of",
]

INK = "#7F7F7F"  # of lines that are no method: readable on white and on dark
SHOWN = "indexof(hidden, datum.method) < 0"


class Chart(NamedTuple):
    """One chart.

    Attributes:
        name: Of its PNG, and its place on the page.
        section: Part of the page it stands in.
        title: What it shows.
        caption: How to read it, and what it leaves out.
        spec: In Vega-Lite, without a width.
    """

    name: str
    section: str
    title: str
    caption: str
    spec: Mapping[str, Any]


def spec_of(layers: Sequence[Any], *, height: Any, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return layers as one specification that holds their data.

    Args:
        layers: Charts; they may use the parameters ``hidden``, methods not to show, and
            ``letters``, the length at which names are cut in the middle.
        height: In pixels, or a step for each row.
        rows: The data that layers name.
    """
    chart = alt.layer(*layers).properties(height=height)
    chart = chart.add_params(
        alt.param(name="hidden", value=[]), alt.param(name="letters", value=36)
    )
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)  # the page and the PNGs have their own
    # Added here, because altair would check each row against a schema and refuse more than 5000.
    return {**spec, "datasets": rows}


def rows_named(name: str) -> Any:
    """Return a chart of rows that ``spec_of`` is given.

    Args:
        name: What they are called there.
    """
    return alt.Chart(alt.NamedData(name=name))


def look_scales(comparison: Comparison) -> tuple[Any, Any]:
    """Return the encodings of colour and of shape by method.

    Args:
        comparison: Whose methods are drawn.
    """
    found = looks(comparison.methods)
    colours = alt.Scale(domain=list(found), range=[look.colour for look in found.values()])
    shapes = alt.Scale(domain=list(found), range=[look.shape for look in found.values()])
    return alt.Color("method:N", scale=colours), alt.Shape("method:N", scale=shapes)


def method_axis() -> Any:
    """Return the encoding of a row for each method, its name cut in the middle where it must be."""
    labels = alt.Axis(labelExpr="truncate(datum.label, letters, 'center')")
    return alt.Y("method:N", sort=None, title=None, axis=labels)


def text_of(estimate: Estimate, metric: Metric) -> str:
    """Return an estimate for a tooltip.

    Args:
        estimate: The number.
        metric: What it measures.
    """
    places = 1 if metric.unit == "%" else 3
    value, low, high = (number(it * metric.scale, places) for it in estimate[:3])
    return f"{value} [{low}, {high}] {metric.unit}".strip()


def is_finite(estimate: Estimate | None) -> TypeGuard[Estimate]:
    """Return whether there is a number that can be drawn.

    Args:
        estimate: The number, or None.
    """
    return estimate is not None and all(math.isfinite(it) for it in estimate[:3])


def axis_title(metric: Metric) -> str:
    """Return what stands at an axis.

    Args:
        metric: What the axis measures.
    """
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title
