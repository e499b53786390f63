"""The charts as PNG, each with title, caption and legend of its own."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl_convert

from prefopt.compare.report.vega import Chart

__all__ = ["draw_pictures"]

_WIDTH = 680
_CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "DejaVu Sans, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#E6E6E6", "domainColor": "#8A8A8A", "tickColor": "#8A8A8A"},
    "axisY": {"labelLimit": 220},
    "legend": {
        "orient": "bottom",
        "columns": 2,
        "labelLimit": 310,
        "symbolLimit": 0,
        "symbolOpacity": 1,
        "title": None,
    },
    "title": {"anchor": "start", "fontSize": 15, "subtitleColor": "#555555", "offset": 12},
    "padding": 14,
}


def draw_pictures(charts: Sequence[Chart], folder: Path) -> None:
    """Write a PNG of each chart.

    Args:
        charts: What to draw.
        folder: Where to write; it must exist.
    """
    for chart in charts:
        title = {"text": chart.title, "subtitle": textwrap.wrap(chart.caption, 105)}
        spec = {**chart.spec, "width": _WIDTH, "title": title}
        png = vl_convert.vegalite_to_png(spec, config=_CONFIG, scale=2)
        (folder / f"{chart.name}.png").write_bytes(png)
