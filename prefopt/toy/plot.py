"""The picture of the toy experiment: reward against KL, and what training did step by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.evaluation import FrontierPoint
from prefopt.toy.experiment import Measurement, MethodRun

__all__ = ["plot_experiment"]

# Okabe and Ito's palette, told apart by colour-blind readers; markers say it a second time.
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
        subtitle: Small print below the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever backend the user has
    grid = figure.add_gridspec(2, 2, width_ratios=(1.45, 1.0))
    climb = figure.add_subplot(grid[:, 0])
    accuracy = figure.add_subplot(grid[0, 1])
    margin = figure.add_subplot(grid[1, 1], sharex=accuracy)
    for axes in (climb, accuracy, margin):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
    _draw_climb(climb, runs, frontier, frontier_samples)
    _draw_accuracy(accuracy, runs, best_accuracy)
    _draw_margin(margin, runs)
    figure.suptitle(
        "How far each method climbs, and how far it could have", fontsize=15, color=_INK
    )
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


def _draw_climb(
    axes: Any, runs: Sequence[MethodRun], frontier: Sequence[FrontierPoint], samples: int
) -> None:
    kls = [point.kl for point in frontier]
    rewards = [point.reward for point in frontier]
    top = max([*rewards, *(m.reward.high for run in runs for m in run.path)])
    top += 0.06 * (top - min(rewards))
    axes.fill_between(kls, rewards, top, color="#F1F1F1", linewidth=0, zorder=0)
    axes.plot(
        kls, rewards, color=_INK, linewidth=2.4, label="best reachable: start × exp(reward / β)"
    )
    axes.text(
        0.03,
        0.97,
        "no policy gets here",
        transform=axes.transAxes,
        va="top",
        color=_GREY,
        style="italic",
    )
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
    for index, run in enumerate(runs):
        last = run.path[-1]
        axes.plot(
            [m.kl.value for m in run.path],
            [m.reward.value for m in run.path],
            label=run.name,
            **_style(index),
        )
        axes.errorbar(
            last.kl.value,
            last.reward.value,
            xerr=[[last.kl.value - last.kl.low], [last.kl.high - last.kl.value]],
            yerr=[[last.reward.value - last.reward.low], [last.reward.high - last.reward.value]],
            color=_style(index)["color"],
            linewidth=1.2,
            capsize=2.5,
        )
    start = runs[0].path[0]
    axes.plot(0, start.reward.value, "*", color=_INK, markersize=15, zorder=5)
    axes.annotate(
        "start",
        (0, start.reward.value),
        xytext=(11, -4),
        textcoords="offset points",
        color=_INK,
    )
    axes.set_xlim(left=-0.04)
    axes.set_ylim(top=top)
    axes.set_xlabel("KL(policy ‖ start) of a completion, nats")
    axes.set_ylabel("true reward of the policy's samples, points")
    axes.set_title(
        f"Reward against distance (limit: as far as {samples:,} samples of the start tell)",
        loc="left",
        fontsize=10.5,
        color=_INK,
    )
    axes.legend(loc="lower right", frameon=False)


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
        axes.plot([m.step for m in run.path], _margins(run.path), **_style(index))
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("margin, nats")
    axes.set_title(
        "Log-ratio of chosen minus rejected, held out", loc="left", fontsize=10.5, color=_INK
    )


def _margins(path: Sequence[Measurement]) -> list[float]:
    return [m.margin for m in path]
