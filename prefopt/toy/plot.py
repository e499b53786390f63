"""The picture of the toy experiment: reward against KL, held-out accuracy and margin by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.evaluation import FrontierPoint
from prefopt.toy.experiment import MethodRun

__all__ = ["plot_experiment"]

# Okabe and Ito's palette, safe for colour-blind readers; markers differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK = "#333333"
_GREY = "#8A8A8A"


def plot_experiment(
    path: Path,
    runs: Sequence[MethodRun],
    frontier: Sequence[FrontierPoint],
    *,
    best_accuracy: float,
    frontier_samples: int,
    subtitle: str = "",
) -> None:
    """Draw the experiment into a PNG.

    Args:
        path: The file to write.
        runs: One per method; each path starts at step 0.
        frontier: Best reachable reward by KL.
        best_accuracy: Held-out accuracy of the true reward itself, which label noise limits.
        frontier_samples: Samples of the reference behind the frontier, all prompts together.
        subtitle: Small print at the bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever backend the user has
    grid = figure.add_gridspec(2, 2, width_ratios=(1.45, 1.0))
    reward = figure.add_subplot(grid[:, 0])
    accuracy = figure.add_subplot(grid[0, 1])
    margin = figure.add_subplot(grid[1, 1], sharex=accuracy)
    for axes in (reward, accuracy, margin):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
    _draw_rewards(reward, runs, frontier, frontier_samples)
    _draw_accuracy(accuracy, runs, best_accuracy)
    _draw_margin(margin, runs)
    title = "The reward that each method reaches, and the best reachable"
    figure.suptitle(title, fontsize=15, color=_INK)
    if subtitle:
        figure.supxlabel(subtitle, fontsize=9, color=_GREY)
    figure.savefig(path)


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 6,
        "linewidth": 1.8,
        "markeredgecolor": "white",
        "markeredgewidth": 0.7,
    }


def _draw_rewards(
    axes: Any, runs: Sequence[MethodRun], frontier: Sequence[FrontierPoint], samples: int
) -> None:
    rewards = [point.reward for point in frontier]
    top = max([*rewards, *(m.reward.high for run in runs for m in run.path)])
    top += 0.06 * (top - min(rewards))
    _draw_frontier(axes, frontier, top)
    for index, run in enumerate(runs):
        _draw_path(axes, run, _style(index))
    start = runs[0].path[0].reward.value
    axes.plot(0, start, "*", color=_INK, markersize=15, zorder=5)
    axes.annotate("start", (0, start), xytext=(11, -4), textcoords="offset points", color=_INK)
    axes.set_xlim(left=-0.04)
    axes.set_ylim(top=top)
    axes.set_xlabel("KL(policy ‖ start) of a completion, nats")
    axes.set_ylabel("true reward of the policy's samples, points")
    axes.set_title(
        f"Reward against distance (limit: estimated from {samples:,} samples of the start)",
        loc="left",
        fontsize=10.5,
        color=_INK,
    )
    axes.legend(loc="lower right", frameon=False)


def _draw_frontier(axes: Any, frontier: Sequence[FrontierPoint], top: float) -> None:
    kls = [point.kl for point in frontier]
    rewards = [point.reward for point in frontier]
    axes.fill_between(kls, rewards, top, color="#F1F1F1", linewidth=0, zorder=0)
    label = "best reachable: start × exp(reward / β)"
    axes.plot(kls, rewards, color=_INK, linewidth=2.4, label=label)
    words = {"transform": axes.transAxes, "va": "top", "color": _GREY, "style": "italic"}
    axes.text(0.03, 0.97, "no policy gets here", **words)
    for point in frontier:
        if point.beta in (2.0, 1.4, 1.0, 0.8):
            axes.plot(point.kl, point.reward, ".", color=_INK, markersize=7)
            axes.annotate(
                f"β = {point.beta:g}",
                (point.kl, point.reward),
                xytext=(-6, 5),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=_INK,
            )


def _draw_path(axes: Any, run: MethodRun, style: dict[str, Any]) -> None:
    """Draw the measurements of a method, and the interval of the last one."""
    kls, rewards = [m.kl.value for m in run.path], [m.reward.value for m in run.path]
    axes.plot(kls, rewards, label=run.name, **style)
    kl, reward = run.path[-1].kl, run.path[-1].reward
    axes.errorbar(
        kl.value,
        reward.value,
        xerr=[[kl.value - kl.low], [kl.high - kl.value]],
        yerr=[[reward.value - reward.low], [reward.high - reward.value]],
        color=style["color"],
        linewidth=1.2,
        capsize=2.5,
    )


def _draw_accuracy(axes: Any, runs: Sequence[MethodRun], best_accuracy: float) -> None:
    for index, run in enumerate(runs):
        steps = [m.step for m in run.path]
        style = _style(index)
        axes.plot(steps, [100 * m.accuracy.value for m in run.path], **style)
        axes.fill_between(
            steps,
            [100 * m.accuracy.low for m in run.path],
            [100 * m.accuracy.high for m in run.path],
            color=style["color"],
            alpha=0.08,
            linewidth=0,
        )
    axes.axhline(100 * best_accuracy, color=_INK, linewidth=1.2, linestyle="--")
    axes.annotate(
        "the true reward itself: labels are noisy",
        (0.0, 100 * best_accuracy),
        xycoords=("axes fraction", "data"),
        xytext=(6, 4),
        textcoords="offset points",
        fontsize=8,
        color=_INK,
    )
    axes.axhline(50, color=_GREY, linewidth=1.0, linestyle=":")
    axes.set_ylim(top=100 * best_accuracy + 5)
    axes.set_ylabel("held-out accuracy, %")
    axes.set_title(
        "Implicit reward on held-out pairs (95% intervals)", loc="left", fontsize=10.5, color=_INK
    )
    axes.tick_params(labelbottom=False)


def _draw_margin(axes: Any, runs: Sequence[MethodRun]) -> None:
    for index, run in enumerate(runs):
        axes.plot([m.step for m in run.path], [m.margin for m in run.path], **_style(index))
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("margin, nats")
    axes.set_title(
        "Log-ratio of chosen minus rejected, held out", loc="left", fontsize=10.5, color=_INK
    )
