"""The charts of the page, in Vega-Lite.

Why Vega-Lite and not Plotly: the page embeds the library once, and that is 0.90 MB (Vega 6,
Vega-Lite 6.4, vega-embed 7 as vl-convert 1.9 bundles them) instead of 4.82 MB (plotly.min.js of
plotly 7.1), which alone would nearly fill the 5 MB that a page may have. The same package draws
the PNGs without a browser.

A chart of the page has no legend: one key of buttons stands for all, and tells each chart by its
parameter ``hidden`` which methods not to show. PNGs have a legend of their own.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import altair as alt

from prefopt.compare.report.metrics import Metric, find_metric, number
from prefopt.compare.report.palette import Look, looks
from prefopt.compare.report.series import bands, curve_metrics, unfinite
from prefopt.compare.report.tables import opponent_title, rule_title
from prefopt.compare.results import Comparison, Curve
from prefopt.evaluation import Estimate

__all__ = ["Chart", "all_charts"]

_INK = "#7F7F7F"  # of lines that are no method: readable on white and on dark
_SHOWN = "indexof(hidden, datum.method) < 0"
_DASHES = ((6, 4), (2, 3), (9, 3, 2, 3))


class Chart(NamedTuple):
    """One chart.

    Attributes:
        name: Of its PNG, and its place on the page.
        section: Part of the page it stands in.
        title: What it shows.
        caption: How to read it, and what it leaves out.
        spec: In Vega-Lite, without a width.
        keyed: Whether methods are told apart by colour and shape alone.
    """

    name: str
    section: str
    title: str
    caption: str
    spec: Mapping[str, Any]
    keyed: bool


def all_charts(comparison: Comparison) -> list[Chart]:
    """Return every chart for which there are numbers.

    Args:
        comparison: What was found.
    """
    makers: tuple[Callable[[Comparison], Iterable[Chart]], ...] = (
        _accuracies,
        _frontier,
        _win_rates,
        _curves,
        _lengths,
        _displacement,
    )
    return [chart for maker in makers for chart in maker(comparison)]


def _spec(
    layers: Sequence[Any], *, height: Any, keyed: bool = False, **datasets: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return layers as one specification, and the data that they name."""
    chart = alt.layer(*layers).properties(height=height)
    if keyed:
        chart = chart.add_params(alt.param(name="hidden", value=[]))
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)  # the page and the PNGs have their own
    # Added here, because altair would check each row against a schema and refuse more than 5000.
    return {**spec, "datasets": datasets}


def _of(data: str) -> Any:
    """Return a chart of the rows that ``_spec`` gets under a name."""
    return alt.Chart(alt.NamedData(name=data))


def _look_scales(comparison: Comparison) -> tuple[Any, Any]:
    """Return the encodings of colour and shape by method."""
    found: dict[str, Look] = looks(comparison.methods)
    domain = list(found)
    colours = alt.Scale(domain=domain, range=[look.colour for look in found.values()])
    shapes = alt.Scale(domain=domain, range=[look.shape for look in found.values()])
    return (
        alt.Color("method:N", scale=colours),
        alt.Shape("method:N", scale=shapes),
    )


def _text_of(estimate: Estimate, metric: Metric) -> str:
    """Return an estimate for a tooltip."""
    places = 1 if metric.unit == "%" else 3
    value, low, high = (number(it * metric.scale, places) for it in estimate[:3])
    return f"{value} [{low}, {high}] {metric.unit}".strip()


def _finite(estimate: Estimate | None) -> bool:
    return estimate is not None and all(math.isfinite(it) for it in estimate[:3])


# --- One row a method: an estimate with its interval ---


def _forest(
    comparison: Comparison,
    metric: Metric,
    section: str,
    rules: Mapping[str, Estimate] | None = None,
) -> Iterable[Chart]:
    """Yield a chart of one metric: methods down, estimates with intervals across."""
    rows = _estimate_rows(comparison, metric)
    if not rows:
        return
    lines = {name: it for name, it in (rules or {}).items() if _finite(it)}
    colour, shape = _look_scales(comparison)
    y = alt.Y("method:N", sort=None, title=None)
    base = _of("rows").encode(y=y, color=colour.legend(None))
    x = alt.X("value:Q", title=_axis_title(metric), scale=alt.Scale(zero=False, nice=True))
    tip = [alt.Tooltip("method:N"), alt.Tooltip("text:N", title=metric.title)]
    layers = [
        *(_line(it.value * metric.scale, dash) for it, dash in _dashed(lines.values())),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", tooltip=tip),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x, shape=shape.legend(None), tooltip=tip
        ),
    ]
    caption = f"{metric.meaning} Lines are 95% intervals.{_lines_said(lines, metric)}"
    caption += _left_out(comparison, metric, rows)
    yield Chart(
        metric.name,
        section,
        metric.title,
        caption,
        _spec(layers, height=alt.Step(22), rows=rows),
        keyed=False,
    )


def _estimate_rows(comparison: Comparison, metric: Metric) -> list[dict[str, Any]]:
    """Return a metric of each method that has a finite one."""
    return [
        {
            "method": it.name,
            "value": estimate.value * metric.scale,
            "low": estimate.low * metric.scale,
            "high": estimate.high * metric.scale,
            "text": _text_of(estimate, metric),
        }
        for it in comparison.methods
        if (estimate := it.metrics.get(metric.name)) is not None and _finite(estimate)
    ]


def _axis_title(metric: Metric) -> str:
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def _line(value: float, dash: Sequence[int]) -> Any:
    """Return a vertical line across all rows."""
    rule = alt.Chart(alt.Data(values=[{"at": value}])).mark_rule(
        strokeDash=list(dash), color=_INK, strokeWidth=1.5
    )
    return rule.encode(x="at:Q")


def _dashed(estimates: Iterable[Estimate]) -> list[tuple[Estimate, Sequence[int]]]:
    return [(it, _DASHES[place % len(_DASHES)]) for place, it in enumerate(estimates)]


def _lines_said(lines: Mapping[str, Estimate], metric: Metric) -> str:
    """Return what the vertical lines are, in the order of their dashes."""
    names = ("dashed", "dotted", "dash-dotted")
    said = [
        f"{rule_title(name)}, {number(it.value * metric.scale, 1)}{metric.unit} "
        f"({names[place % len(names)]})"
        for place, (name, it) in enumerate(lines.items())
    ]
    return f" Vertical lines need no training: {'; '.join(said)}." if said else ""


def _left_out(comparison: Comparison, metric: Metric, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which methods have a number that cannot be drawn."""
    drawn = {row["method"] for row in rows}
    absent = [
        it.name for it in comparison.methods if metric.name in it.metrics and it.name not in drawn
    ]
    return f" Not drawn, because not finite: {', '.join(absent)}." if absent else ""


def _accuracies(comparison: Comparison) -> Iterable[Chart]:
    yield from _forest(comparison, find_metric("accuracy"), "results", comparison.data_baselines)
    yield from _forest(comparison, find_metric("balanced_accuracy"), "results")


def _lengths(comparison: Comparison) -> Iterable[Chart]:
    yield from _forest(comparison, find_metric("completion_tokens"), "length")
    yield from _forest(comparison, find_metric("margin_length_correlation"), "length")


def _displacement(comparison: Comparison) -> Iterable[Chart]:
    """Yield the log-ratios of chosen and rejected answers, a line between the two."""
    chosen, rejected = find_metric("chosen_log_ratio"), find_metric("rejected_log_ratio")
    rows = [
        {"method": it.name, "chosen": both[0].value, "rejected": both[1].value}
        for it in comparison.methods
        if all(_finite(it.metrics.get(metric.name)) for metric in (chosen, rejected))
        and (both := (it.metrics[chosen.name], it.metrics[rejected.name]))
    ]
    if not rows:
        return
    colour, _ = _look_scales(comparison)
    base = _of("rows").encode(
        y=alt.Y("method:N", sort=None, title=None),
        color=colour.legend(None),
        tooltip=[
            "method:N",
            alt.Tooltip("chosen:Q", format=".2f"),
            alt.Tooltip("rejected:Q", format=".2f"),
        ],
    )
    x = alt.X("chosen:Q", title="Log-ratio to the start, nats")
    layers = [
        _line(0.0, (2, 3)),
        base.mark_rule(strokeWidth=2).encode(x=x, x2="rejected:Q"),
        base.mark_point(shape="circle", size=70, filled=True, opacity=1).encode(x=x),
        base.mark_point(shape="cross", size=70, filled=True, opacity=1).encode(x="rejected:Q"),
    ]
    caption = (
        "How much more (right of 0) or less (left) probable the held-out answers became: chosen "
        "(circle) and rejected (cross). Where the circle is left of 0, training made the chosen "
        "answers less likely: likelihood displacement."
    )
    title = "Chosen and rejected answers"
    spec = _spec(layers, height=alt.Step(22), rows=rows)
    yield Chart("displacement", "length", title, caption, spec, keyed=False)


# --- Reward against KL ---


def _frontier(comparison: Comparison) -> Iterable[Chart]:
    """Yield reward against KL: methods with both intervals, seeds, and the best reachable."""
    colours = {name: look.colour for name, look in looks(comparison.methods).items()}
    rows = [
        {"method": it.name, "loss": it.loss, "colour": colours[it.name]}
        | _both(it.metrics["kl"], it.metrics["reward"])
        for it in comparison.methods
        if _finite(it.metrics.get("kl")) and _finite(it.metrics.get("reward"))
    ]
    if not rows:
        return
    seeds = [
        {"method": it.name, "kl": x, "reward": y}
        for it in comparison.methods
        for x, y in zip(it.by_seed.get("kl", ()), it.by_seed.get("reward", ()), strict=False)
        if math.isfinite(x) and math.isfinite(y)
    ]
    axes = _Axes("sqrt" if _is_wide([row["kl"] for row in rows]) else "linear")
    layers = _frontier_layers(
        comparison, axes, {row["loss"] for row in rows if _count(rows, row["loss"]) > 1}
    )
    yield Chart(
        "frontier",
        "frontier",
        "Reward against distance from the start",
        _frontier_caption(comparison, seeds),
        _spec(layers, height=400, keyed=True, rows=rows, seeds=seeds, best=_best(comparison)),
        keyed=True,
    )


def _both(kl: Estimate, reward: Estimate) -> dict[str, Any]:
    return {
        "kl": kl.value,
        "kl_low": kl.low,
        "kl_high": kl.high,
        "reward": reward.value,
        "reward_low": reward.low,
        "reward_high": reward.high,
        "kl_text": _text_of(kl, find_metric("kl")),
        "reward_text": _text_of(reward, find_metric("reward")),
    }


def _is_wide(values: Sequence[float]) -> bool:
    """Return whether a few large values would press the others together on a linear scale."""
    positive = sorted(value for value in values if value > 0)
    return bool(positive) and positive[-1] > 8 * positive[len(positive) // 2]


class _Axes(NamedTuple):
    """KL across and reward up, for any field that holds one."""

    kl_scale: str

    def x(self, field: str = "kl") -> Any:
        note = " (square-root scale)" if self.kl_scale == "sqrt" else ""
        title = _axis_title(find_metric("kl")) + note
        return alt.X(f"{field}:Q", title=title, scale=alt.Scale(type=self.kl_scale, zero=True))

    def y(self, field: str = "reward") -> Any:
        title = _axis_title(find_metric("reward"))
        return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False))


def _best(comparison: Comparison) -> list[dict[str, float]]:
    """Return the best reachable reward by KL."""
    points = sorted(comparison.frontier, key=lambda point: point.kl)
    return [
        {"kl": it.kl, "reward": it.reward}
        for it in points
        if math.isfinite(it.kl) and math.isfinite(it.reward)
    ]


def _frontier_layers(comparison: Comparison, axes: _Axes, joined: Collection[str]) -> list[Any]:
    """Return the best reachable rewards, joined methods of a loss, seeds, intervals, methods."""
    colour, shape = _look_scales(comparison)
    x, y = axes.x(), axes.y()
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("reward_text:N", title="reward"),
        alt.Tooltip("kl_text:N", title="KL"),
    ]
    base = _of("rows").transform_filter(_SHOWN).encode(color=colour)
    of_one_loss = (
        _of("rows")
        .transform_filter(_SHOWN)
        .transform_filter(alt.FieldOneOfPredicate(field="loss", oneOf=sorted(joined)))
    )
    lines = base.mark_rule(strokeWidth=1.5)
    return [
        _of("best")
        .mark_line(color=_INK, strokeWidth=2, strokeDash=[6, 4])
        .encode(x=x, y=y, order="kl:Q"),
        of_one_loss.mark_line(strokeWidth=1, opacity=0.6).encode(
            x=x, y=y, order="kl:Q", detail="loss:N", stroke=alt.Stroke("colour:N", scale=None)
        ),
        _of("seeds")
        .transform_filter(_SHOWN)
        .mark_point(size=18, opacity=0.6)
        .encode(x=x, y=y, color=colour),
        lines.encode(x=axes.x("kl_low"), x2="kl_high:Q", y=y),
        lines.encode(x=x, y=axes.y("reward_low"), y2="reward_high:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, shape=shape, tooltip=tip),
    ]


def _count(rows: Sequence[Mapping[str, Any]], loss: str) -> int:
    return sum(row["loss"] == loss for row in rows)


def _frontier_caption(comparison: Comparison, seeds: Sequence[Any]) -> str:
    parts = [
        "Up is better, left is cheaper. Crosses of lines are 95% intervals; methods of one "
        "loss are joined."
    ]
    if seeds:
        parts.append("Small rings are single seeds.")
    if comparison.frontier:
        parts.append("Dashed: the best reward that any policy can reach at this KL.")
    return " ".join(parts)


# --- Win rates ---


def _win_rates(comparison: Comparison) -> Iterable[Chart]:
    """Yield win rate over temperature, a chart for each opponent."""
    for against in sorted({it.against for it in comparison.win_rates}):
        rows = _win_rate_rows(comparison, against)
        if not rows:
            continue
        colour, shape = _look_scales(comparison)
        base = _of("rows").transform_filter(_SHOWN).encode(color=colour)
        ticks = alt.Axis(
            values=sorted({row["temperature"] for row in rows}),
            labelExpr="'' + datum.value",
            grid=False,
        )
        x = alt.X(
            "at:Q",
            title="Temperature",
            scale=alt.Scale(zero=False, nice=False, padding=12),
            axis=ticks,
        )
        y = alt.Y("rate:Q", title="Prompts won, %", scale=alt.Scale(zero=False))
        tip = [alt.Tooltip(f"{it}:N") for it in ("method", "temperature", "won")]
        half = alt.Chart(alt.Data(values=[{"at": 50}])).mark_rule(
            strokeDash=[2, 3], color=_INK, strokeWidth=1.5
        )
        layers = [
            half.encode(y="at:Q"),
            base.mark_line(strokeWidth=1.5).encode(x=x, y=y),
            base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
            base.mark_point(filled=True, size=70, opacity=1).encode(
                x=x, y=y, shape=shape, tooltip=tip
            ),
        ]
        yield Chart(
            f"win_rate_{against}",
            "wins",
            f"Win rate against {opponent_title(against)}",
            "Share of prompts on which the judge prefers the method, a tie as one half; the dotted "
            "line is 50%. Points of one temperature stand side by side so that no interval hides "
            "another.",
            _spec(layers, height=320, keyed=True, rows=rows),
            keyed=True,
        )


def _win_rate_rows(comparison: Comparison, against: str) -> list[dict[str, Any]]:
    """Return the win rates against one opponent, each method a little to the side of the last."""
    rates = [it for it in comparison.win_rates if it.against == against and _finite(it.rate)]
    names = [it.name for it in comparison.methods]
    there = sorted(
        {it.method for it in rates}, key=lambda it: names.index(it) if it in names else 0
    )
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
            "won": _text_of(it.rate, percent),
        }
        for it in rates
    ]


# --- Curves of training ---


def _curves(comparison: Comparison) -> Iterable[Chart]:
    """Yield one chart for each logged metric."""
    series = len({(it.method, it.metric) for it in comparison.curves})
    for metric in curve_metrics(comparison.curves):
        its = [it for it in comparison.curves if it.metric == metric]
        yield from _curve(comparison, metric, its, series)


def _curve(
    comparison: Comparison, metric: str, curves: Sequence[Curve], series: int
) -> Iterable[Chart]:
    names = [it.name for it in comparison.methods]
    rows = [
        {"m": names.index(method), "s": point.step, "v": _short(point.mean)}
        | ({} if point.low == point.high else {"l": _short(point.low), "h": _short(point.high)})
        for method, points in bands(curves, series).items()
        if method in names
        for point in points
    ]
    if not rows:
        return
    colour, _ = _look_scales(comparison)
    base = (
        _of("rows")
        .transform_calculate(method=f"{json.dumps(names)}[datum.m]")
        .transform_filter(_SHOWN)
        .encode(x=alt.X("s:Q", title="Step"), color=colour)
    )
    y = alt.Y("v:Q", title=None, scale=alt.Scale(zero=False))
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("s:Q", title="step"),
        alt.Tooltip("v:Q", title="mean"),
    ]
    layers = [
        base.mark_area(opacity=0.2).encode(y=alt.Y("l:Q"), y2="h:Q"),
        base.mark_line(strokeWidth=1.75).encode(y=y, tooltip=tip),
    ]
    yield Chart(
        "curve_" + "".join(it if it.isalnum() else "_" for it in metric),
        "training",
        metric,
        _curve_caption(curves),
        _spec(layers, height=220, keyed=True, rows=rows),
        keyed=True,
    )


def _curve_caption(curves: Sequence[Curve]) -> str:
    """Return what of the curves is not drawn."""
    count = unfinite(curves)
    return f"Not drawn, because not finite: {count:,} of the logged values." if count else ""


def _short(value: float) -> float:
    """Return a value with the digits that a chart can show: half of them would be the file."""
    return float(f"{value:.5g}")
