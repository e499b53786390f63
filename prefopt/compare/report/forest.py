"""Charts with a row for each method: accuracies, lengths, and displacement of likelihood."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import altair as alt

from prefopt.compare.report.metrics import Metric, find_metric, number
from prefopt.compare.report.rules import rule_title, rules_of
from prefopt.compare.report.vega import (
    INK,
    Chart,
    axis_title,
    is_finite,
    look_scales,
    method_axis,
    rows_named,
    spec_of,
    text_of,
)
from prefopt.compare.results import Comparison
from prefopt.evaluation import Estimate

__all__ = ["accuracies", "displacement", "lengths", "method_intervals", "vertical_line"]

_DASHES = {"dashed": (6, 4), "dotted": (2, 3), "dash-dotted": (9, 3, 2, 3)}


def accuracies(comparison: Comparison) -> Iterable[Chart]:
    """Yield held-out accuracy beside rules that need no training, and accuracy at equal lengths.

    Args:
        comparison: What was found.
    """
    yield from _forest(comparison, "accuracy", "results")
    yield from _forest(comparison, "balanced_accuracy", "results")


def lengths(comparison: Comparison) -> Iterable[Chart]:
    """Yield the length of answers, and how the margin follows length.

    Args:
        comparison: What was found.
    """
    yield from _forest(comparison, "completion_tokens", "length")
    yield from _forest(comparison, "margin_length_correlation", "length")


def _forest(comparison: Comparison, name: str, section: str) -> Iterable[Chart]:
    """Yield a chart of one metric: methods down, estimates with intervals across."""
    metric = find_metric(name)
    rows = _estimate_rows(comparison, metric)
    if not rows:
        return
    rules = rules_of(name, comparison.data_baselines)
    lines = {rule: it for rule, it in rules.items() if is_finite(it)}
    caption = f"{metric.meaning} Lines are 95% intervals.{_lines_said(lines, metric)}"
    caption += _left_out(comparison, metric, rows)
    layers = [
        *(
            vertical_line(it.value * metric.scale, dash)
            for it, (_, dash) in _dashed(lines.values())
        ),
        *_estimates(comparison, metric),
    ]
    spec = spec_of(layers, height=alt.Step(22), rows=rows)
    yield Chart(metric.name, section, metric.title, caption, spec)


def _estimates(comparison: Comparison, metric: Metric) -> list[Any]:
    """Return intervals and values."""
    tip = [alt.Tooltip("method:N"), alt.Tooltip("text:N", title=metric.title)]
    x = alt.X("value:Q", title=axis_title(metric), scale=alt.Scale(zero=False))
    return method_intervals(comparison, x, tip)


def method_intervals(comparison: Comparison, x: Any, tip: Sequence[Any]) -> list[Any]:
    """Return a row for each method: its interval from ``low`` to ``high``, and its value.

    Args:
        comparison: What was found; its methods have their looks.
        x: Encoding of the value.
        tip: Tooltips.
    """
    colour, shape = look_scales(comparison)
    base = rows_named("rows").encode(y=method_axis(), color=colour.legend(None), tooltip=list(tip))
    return [
        base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x, shape=shape.legend(None)),
    ]


def _estimate_rows(comparison: Comparison, metric: Metric) -> list[dict[str, Any]]:
    """Return a metric of each method that has a finite one."""
    return [
        {
            "method": it.name,
            "value": estimate.value * metric.scale,
            "low": estimate.low * metric.scale,
            "high": estimate.high * metric.scale,
            "text": text_of(estimate, metric),
        }
        for it in comparison.methods
        if (estimate := it.metrics.get(metric.name)) is not None and is_finite(estimate)
    ]


def vertical_line(value: float, dash: Sequence[int]) -> Any:
    """Return a vertical line across all rows."""
    rule = alt.Chart(alt.Data(values=[{"at": value}])).mark_rule(
        strokeDash=list(dash), color=INK, strokeWidth=1.5
    )
    return rule.encode(x="at:Q")


def _dashed(estimates: Iterable[Estimate]) -> list[tuple[Estimate, tuple[str, Sequence[int]]]]:
    """Return each line's dashes, by name and as drawn; more than three lines share them."""
    return list(zip(estimates, cycle(_DASHES.items()), strict=False))


def _lines_said(lines: Mapping[str, Estimate], metric: Metric) -> str:
    """Return what the vertical lines are."""
    said = [
        f"{rule_title(name)}, {number(it.value * metric.scale, 1)}{metric.unit} ({dash})"
        for name, (it, (dash, _)) in zip(lines, _dashed(lines.values()), strict=True)
    ]
    return f" Vertical lines need no training: {'; '.join(said)}." if said else ""


def _left_out(comparison: Comparison, metric: Metric, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which methods have a number that cannot be drawn."""
    drawn = {row["method"] for row in rows}
    absent = [
        it.name for it in comparison.methods if metric.name in it.metrics and it.name not in drawn
    ]
    return f" Not drawn, because not finite: {', '.join(absent)}." if absent else ""


def displacement(comparison: Comparison) -> Iterable[Chart]:
    """Yield the log-ratios of chosen and rejected answers, a line between the two.

    Args:
        comparison: What was found.
    """
    rows = [
        {"method": it.name, "chosen": chosen.value, "rejected": rejected.value}
        for it in comparison.methods
        if is_finite(chosen := it.metrics.get("chosen_log_ratio"))
        and is_finite(rejected := it.metrics.get("rejected_log_ratio"))
    ]
    if not rows:
        return
    caption = (
        "How much more (right of 0) or less (left) probable the held-out answers became: chosen "
        "(circle) and rejected (cross). Where the circle is left of 0, training made the chosen "
        "answers less likely: likelihood displacement."
    )
    spec = spec_of(
        [vertical_line(0.0, (2, 3)), *_dumbbells(comparison)], height=alt.Step(22), rows=rows
    )
    yield Chart("displacement", "length", "Chosen and rejected answers", caption, spec)


def _dumbbells(comparison: Comparison) -> list[Any]:
    colour, _ = look_scales(comparison)
    values = [alt.Tooltip(f"{it}:Q", format=".2f") for it in ("chosen", "rejected")]
    base = rows_named("rows").encode(
        y=method_axis(), color=colour.legend(None), tooltip=["method:N", *values]
    )
    x = alt.X("chosen:Q", title="Log-ratio to the start, nats")
    return [
        base.mark_rule(strokeWidth=2).encode(x=x, x2="rejected:Q"),
        base.mark_point(shape="circle", size=70, filled=True, opacity=1).encode(x=x),
        base.mark_point(shape="cross", size=70, filled=True, opacity=1).encode(x="rejected:Q"),
    ]
