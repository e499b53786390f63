"""Pictures of the losses: loss and slope, beside DPO's, for their pages and for the gallery."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from loss_curves import Curve, axis_label, dpo_beside, loss_curves
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from prefopt.losses import Loss

COLOURS = ("#1b6ca8", "#d1603d", "#3a8f5c", "#8a5aa8", "#c2951b", "#5b6770")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#888888",
    "grid.alpha": 0.22,  # seen on white and on black
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "prefopt",  # with it, and no date, the same curves give the same file
}


def write_picture(loss: Loss, path: Path) -> None:
    """Write the picture of a loss: loss and slope, its variants, and DPO.

    Args:
        loss: The loss.
        path: Where to; the suffix gives the format.
    """
    curves = loss_curves(loss)
    beside = dpo_beside(loss, curves)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.2), layout="constrained")
        axes = figure.subplots(1, 2)
        draw_pair(axes, curves, beside)
        axes[0].set_title("loss")
        axes[1].set_title("slope of the loss")
        for axis in axes:
            axis.set_xlabel(axis_label(loss))
            axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 4, 10]))
        handles, labels = axes[0].get_legend_handles_labels()
        columns = len(labels) if len(labels) <= 5 else 4
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        save(figure, path)


def write_small(loss: Loss, path: Path) -> None:
    """Write the small picture of a loss: two panels, loss above slope.

    Args:
        loss: The loss.
        path: Where to; the suffix gives the format.
    """
    with mpl.rc_context({**STYLE, "axes.titlesize": 11}):
        figure = Figure(figsize=(3.2, 3.8), layout="constrained")
        above, below = figure.subplots(2, 1)
        draw_small(loss, above, below)
        above.set_ylabel("loss")
        below.set_ylabel("slope")
        save(figure, path)


def draw_small(loss: Loss, above: Axes, below: Axes) -> None:
    """Draw a loss in two small panels.

    Args:
        loss: The loss.
        above: For the loss.
        below: For its slope.
    """
    curves = loss_curves(loss)
    for axis in (above, below):
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 4, 10]))
        axis.yaxis.set_major_locator(MaxNLocator(5))
    draw_pair((above, below), curves, dpo_beside(loss, curves))
    above.set_title(loss.name, fontweight="bold")
    above.tick_params(labelbottom=False)
    if len(curves) > 1:
        lines = above.get_lines()
        shown = [line for line in lines if not str(line.get_label()).startswith(("_", "dpo"))]
        if len(shown) <= 4:
            above.legend(handles=shown, fontsize=7.5, handlelength=1.2, labelspacing=0.25)
        else:  # the panels have no room
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
            below.legend(handles=shown, fontsize=7.5, handlelength=1.2, labelspacing=0.25, **place)


def save(figure: Figure, path: Path) -> None:
    """Write a figure with the same bytes each time, and no background: pages may be dark."""
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, metadata=metadata, dpi=130, transparent=True)


def draw_pair(axes: Iterable[Axes], curves: Sequence[Curve], beside: Curve | None) -> None:
    """Draw losses and slopes, and DPO's in grey where it is comparable.

    Args:
        axes: One for the losses, one for the slopes.
        curves: Those of the loss; the first decides the scale.
        beside: DPO's along the same axis; None to leave it out.
    """
    scale = 1.0 if beside is None else dpo_scale(curves[0], beside)
    for axis, values in zip(axes, (_losses, _slopes), strict=True):
        lines = [values(curve) for curve in curves]
        if beside is not None:
            grey = scale * values(beside)
            label = (
                "dpo" if scale == 1 else f"dpo × {scale:,.0f}" if scale > 1 else f"dpo × {scale:g}"
            )
            axis.plot(beside.x, grey, "--", color="#8c8c8c", linewidth=1.2, label=label, zorder=3)
            axis.set_ylim(*limits(lines, grey))
        for curve, line, colour in zip(curves, lines, COLOURS, strict=False):
            axis.plot(curve.x, line, color=colour, label=curve.label)
        axis.margins(x=0)
        axis.axhline(0, color="#888888", linewidth=0.7, zorder=0)
        axis.axvline(0, color="#888888", linewidth=0.7, zorder=0)


def limits(lines: Sequence[Tensor], grey: Tensor) -> tuple[float, float]:
    """Return limits that hold the lines, or as much as leaves DPO's line to be seen."""
    height = max(float(grey.max() - grey.min()), float(grey.abs().max()))
    values = torch.cat([*lines, grey])
    values = values[values.isfinite()]
    low = max(float(values.min()), float(grey.min()) - 1.7 * height)
    high = min(float(values.max()), float(grey.max()) + 1.7 * height)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def dpo_scale(curve: Curve, dpo: Curve) -> float:
    """Return what to multiply DPO by to see both: 1 where they are of one order around 0.

    A constant factor of a loss is a factor of the learning rate, and none at all to Adam.
    """
    near = curve.x.abs() <= 1
    ratio = float(curve.slopes[near].abs().mean() / dpo.slopes[near].abs().mean())
    if 1 / 4 <= ratio <= 4 or ratio == 0:
        return 1.0
    step = 10.0 ** math.floor(math.log10(ratio))
    return step * max(part for part in (1, 2, 5) if part * step <= ratio)


def _losses(curve: Curve) -> Tensor:
    return curve.losses


def _slopes(curve: Curve) -> Tensor:
    return curve.slopes
