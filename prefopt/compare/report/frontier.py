"""Reward against KL: what each method gained, what that cost, and the best reachable."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import altair as alt

from prefopt.compare.report.metrics import find_metric
from prefopt.compare.report.palette import looks
from prefopt.compare.report.vega import (
    INK,
    SHOWN,
    Chart,
    axis_title,
    is_finite,
    look_scales,
    rows_named,
    spec_of,
    text_of,
)
from prefopt.compare.results import Comparison
from prefopt.evaluation import Estimate

__all__ = ["frontier"]


def frontier(comparison: Comparison) -> Iterable[Chart]:
    """Yield reward against KL: methods with both intervals, seeds, and the best reachable.

    Args:
        comparison: What was found.
    """
    rows = _method_rows(comparison)
    if not rows:
        return
    seeds, losses = _seed_rows(comparison), Counter(row["loss"] for row in rows)
    joined = [loss for loss, count in losses.items() if count > 1]
    axes = _Axes("sqrt" if _is_wide([row["kl"] for row in rows]) else "linear")
    layers = [*_background(axes, joined), *_marks(comparison, axes)]
    data = _data_rows(comparison)
    yield Chart(
        "frontier",
        "frontier",
        "Reward against distance from the start",
        _caption(comparison, joined, seeds, data),
        spec_of(layers, height=400, rows=rows, seeds=seeds, best=_best(comparison), data=data),
    )


def _method_rows(comparison: Comparison) -> list[dict[str, Any]]:
    colours = {name: look.colour for name, look in looks(comparison.methods).items()}
    return [
        {"method": it.name, "loss": it.loss, "colour": colours[it.name]} | _both(kl, reward)
        for it in comparison.methods
        if is_finite(kl := it.metrics.get("kl")) and is_finite(reward := it.metrics.get("reward"))
    ]


def _seed_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {"method": it.name, "kl": x, "reward": y}
        for it in comparison.methods
        if len(it.by_seed.get("reward", ())) > 1
        for x, y in zip(it.by_seed.get("kl", ()), it.by_seed.get("reward", ()), strict=False)
        if math.isfinite(x) and math.isfinite(y)
    ]


def _data_rows(comparison: Comparison) -> list[dict[str, float]]:
    """Return the mean reward of the data's chosen answers, where it is known."""
    reward = comparison.data_baselines.get("chosen_reward")
    return [{"reward": reward.value}] if is_finite(reward) else []


def _both(kl: Estimate, reward: Estimate) -> dict[str, Any]:
    return {
        "kl": kl.value,
        "kl_low": kl.low,
        "kl_high": kl.high,
        "reward": reward.value,
        "reward_low": reward.low,
        "reward_high": reward.high,
        "kl_text": text_of(kl, find_metric("kl")),
        "reward_text": text_of(reward, find_metric("reward")),
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
        title = axis_title(find_metric("kl")) + note
        return alt.X(f"{field}:Q", title=title, scale=alt.Scale(type=self.kl_scale, zero=True))

    def y(self, field: str = "reward") -> Any:
        title = axis_title(find_metric("reward"))
        return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False))


def _best(comparison: Comparison) -> list[dict[str, float]]:
    """Return the best reachable reward by KL."""
    points = sorted(comparison.frontier, key=lambda point: point.kl)
    return [
        {"kl": it.kl, "reward": it.reward}
        for it in points
        if math.isfinite(it.kl) and math.isfinite(it.reward)
    ]


def _background(axes: _Axes, joined: Sequence[str]) -> list[Any]:
    """Return the best reachable reward, that of the data, and lines that join methods of a loss."""
    x, y = axes.x(), axes.y()
    best = rows_named("best").mark_line(color=INK, strokeWidth=2, strokeDash=[6, 4])
    of_one_loss = alt.FieldOneOfPredicate(field="loss", oneOf=list(joined))
    lines = rows_named("rows").transform_filter(SHOWN).transform_filter(of_one_loss)
    data = rows_named("data").mark_rule(color=INK, strokeWidth=1.5, strokeDash=[2, 3])
    return [
        best.encode(x=x, y=y, order="kl:Q"),
        data.encode(y=y),
        lines.mark_line(strokeWidth=1, opacity=0.6).encode(
            x=x, y=y, order="kl:Q", detail="loss:N", stroke=alt.Stroke("colour:N", scale=None)
        ),
    ]


def _marks(comparison: Comparison, axes: _Axes) -> list[Any]:
    """Return seeds, intervals and methods."""
    colour, shape = look_scales(comparison)
    x, y = axes.x(), axes.y()
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("reward_text:N", title="reward"),
        alt.Tooltip("kl_text:N", title="KL"),
    ]
    seeds = rows_named("seeds").transform_filter(SHOWN).encode(color=colour)
    base = rows_named("rows").transform_filter(SHOWN).encode(color=colour, tooltip=tip)
    lines = base.mark_rule(strokeWidth=1.5)
    return [
        seeds.mark_point(size=18, opacity=0.6).encode(x=x, y=y),
        lines.encode(x=axes.x("kl_low"), x2="kl_high:Q", y=y),
        lines.encode(x=x, y=axes.y("reward_low"), y2="reward_high:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, shape=shape),
    ]


def _caption(
    comparison: Comparison, joined: Sequence[str], seeds: Sequence[Any], data: Sequence[Any]
) -> str:
    parts = {
        "Up is better, left is cheaper. Crosses of lines are 95% intervals.": True,
        "Methods of one loss are joined.": joined,
        "Small rings are single seeds.": seeds,
        "Dashed: the best reward that any policy can reach at this KL.": comparison.frontier,
        "Dotted: the reward of the data's chosen answers.": data,
    }
    return " ".join(text for text, is_there in parts.items() if is_there)
