"""Tables and pictures of ``toy_limits.py``."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toy_limits_studies import BASES, LABELS, LOSSES, OF_POLICY, SMALL_EPOCHS, Study

from prefopt.evaluation import Estimate

Run = Mapping[str, Any]
Found = Mapping[str, Sequence[Run]]  # the runs of each recipe, by label

# Okabe and Ito's palette, safe for colour-blind readers.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
LOSS_COLOURS = {
    "dpo": BLUE,
    "ipo": ORANGE,
    "kto": GREEN,
    "robust": PINK,
    "orpo": PINK,
    "slic": "#56B4E9",
    "hinge": "#E69F00",
    "discopop": "#7A5195",
}
INK, GREY = "#333333", "#8A8A8A"
GOAL = 0.9
# Student's 97.5% quantile by degrees of freedom, from any table.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def write_results(
    folder: Path,
    studies: Sequence[Study],
    found: Mapping[str, Found],
    frontiers: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Write ``toy_limits.json``, ``.md`` and, as far as their studies were done, the pictures.

    Args:
        folder: Where to.
        studies: What was asked.
        found: The runs of each study.
        frontiers: Of each start: ``kls``, and the best gain at each, ``[value, low, high]``.
        record: Commit, versions, device, size.
    """
    content = {
        "environment": record,
        "frontiers": frontiers,
        "studies": {
            study.name: {
                "question": study.question,
                "rows": {
                    label: {"recipe": asdict(recipe), "runs": found[study.name][label]}
                    for label, recipe in study.recipes.items()
                },
            }
            for study in studies
        },
    }
    (folder / "toy_limits.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "toy_limits.md").write_text("\n".join(text(studies, found, record)) + "\n")
    if "ladder" in found:
        draw_ladder(folder / "toy_limits.png", found["ladder"], frontiers)
    if "losses" in found:
        draw_losses(folder / "toy_limits_losses.png", found["losses"], frontiers)
    if {"back", "alone", "noise", "beta", "unpaired", "small"} <= found.keys():
        draw_studies(folder / "toy_limits_studies.png", found)


# Numbers ------------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean over starts, with Student's 95% interval; without one for a single start.

    >>> [round(x, 3) for x in over_seeds([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484, 3]
    """
    count = len(values)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, math.nan, count)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    spread = STUDENT[count - 2] * deviation / math.sqrt(count)
    return Estimate(mean, mean - spread, mean + spread, count)


def share(runs: Sequence[Run]) -> Estimate:
    """Return the share of the best gain at the reached KL, over starts that know it."""
    return over_seeds(shares(runs))


def shares(runs: Sequence[Run]) -> list[float]:
    """Return each start's share; starts whose policy went too far for it are left out."""
    return [run["share"][0] for run in runs if run["share"]]


def gain(runs: Sequence[Run]) -> Estimate:
    """Return reward above the start's, over starts, in points."""
    return over_seeds([run["reward"][0] - run["start_reward"] for run in runs])


def best_gain(runs: Sequence[Run]) -> float:
    """Return the best gain at the KL that was reached, mean over starts that know it, in points."""
    known = [run["best_reward"] - run["start_reward"] for run in runs if run["share"]]
    return over_seeds(known).value


def mean(runs: Sequence[Run], name: str) -> float:
    """Return the mean over starts of a number, or of the value of an estimate."""
    values = [run[name] for run in runs]
    return sum(v[0] if isinstance(v, Sequence) else v for v in values) / len(values)


# Tables -------------------------------------------------------------------------------------------


def text(
    studies: Sequence[Study], found: Mapping[str, Found], record: Mapping[str, Any]
) -> list[str]:
    """Return the lines of the Markdown file."""
    lines = [
        "# What keeps preference optimisation from the best reward?",
        "",
        f"Commit {record['commit'][:12]}, {record['date']}, {record['device']}. {record['note']}",
        "Made by `python benchmarks/toy_limits.py`. Share: of the best gain at the KL that",
        "was reached, mean over starts with Student's 95% interval, and that of each start.",
        "What it means: `docs/toy.md`.",
    ]
    for study in studies:
        lines += ["", f"## {study.name}: {study.question}", "", f"<!-- {study.name} -->", ""]
        lines += [*table(found[study.name]), "", "<!-- end -->"]  # a page includes some tables
    if "ladder" in found:
        lines += ["", "## temperature: mean reward of answers", "", *temperatures(found["ladder"])]
    return lines


def table(found: Found) -> list[str]:
    """Return a study's table."""
    lines = [
        "| recipe | share of the best gain | by start | gain, points | KL, nats | best gain there "
        "| grammatical | held-out order right | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, runs in found.items():
        if not runs:
            lines.append(f"| {label} | not done | | | | | | | |")
            continue
        by_start = ", ".join(f"{100 * value:.0f}" for value in shares(runs))
        lines.append(
            f"| {label} | {percent(share(runs))} | {by_start} "
            f"| {gain(runs).value:.2f} | {mean(runs, 'kl'):.2f} | {best_gain(runs):.2f} "
            f"| {100 * mean(runs, 'grammatical'):.0f}% | {100 * mean(runs, 'accuracy'):.1f}% "
            f"| {mean(runs, 'cpu_seconds'):.0f} |"
        )
    return lines


def temperatures(ladder: Found) -> list[str]:
    """Return the table of rewards by temperature, of the start and of every rung."""
    done = {label: runs for label, runs in ladder.items() if runs}
    some = next(iter(done.values()))
    starts = [run["start_temperatures"] | {"1": run["start_reward"]} for run in some]
    columns = list(starts[0])
    lines = ["| policy | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    rows = {"start": starts} | {
        label: [run["temperatures"] | {"1": run["reward"][0]} for run in runs]
        for label, runs in done.items()
    }
    for label, values in rows.items():
        cells = [f"{sum(v[column] for v in values) / len(values):.2f}" for column in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def percent(estimate: Estimate) -> str:
    """Return a share and its interval for a table."""
    value, low, high = (100 * x for x in estimate[:3])
    if math.isnan(value):
        return "farther than the start's samples show"
    return f"{value:.1f}%" + ("" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]")


# Pictures -----------------------------------------------------------------------------------------


def draw_ladder(path: Path, ladder: Found, frontiers: Mapping[str, Any]) -> None:
    """Draw the ladder: reward against KL under the frontier, and the shares."""
    figure = canvas(12.5, 5.6)
    plane, bars = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    done = {label: runs for label, runs in ladder.items() if runs}
    draw_frontier(plane, list(frontiers.values()))
    for number, (label, runs) in enumerate(done.items(), 1):
        colour = GREY if label.startswith("limit") else BLUE
        point = (mean(runs, "kl"), gain(runs).value)
        plane.plot(*point, "o", color=colour, markersize=14, zorder=3)
        plane.annotate(
            str(number), point, color="white", ha="center", va="center", fontsize=9, zorder=4
        )
    name_plane(plane)
    names = {f"{number}  {label}": runs for number, (label, runs) in enumerate(done.items(), 1)}
    draw_shares(bars, names)
    figure.suptitle("What keeps DPO from the optimum: one thing more taken away at each step")
    figure.savefig(path)


def draw_losses(path: Path, found: Found, frontiers: Mapping[str, Any]) -> None:
    """Draw every loss on pairs of the grammar and on pairs of the policy, and the shares."""
    figure = canvas(12.5, 6.4)
    plane, bars = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    done = {label: runs for label, runs in found.items() if runs}
    draw_frontier(plane, list(frontiers.values()))
    for loss in LOSSES:
        for label, face in ((loss, "white"), (loss + OF_POLICY, LOSS_COLOURS[loss])):
            for run in done.get(label, []):
                plane.plot(
                    run["kl"][0],
                    run["reward"][0] - run["start_reward"],
                    "o",
                    color=LOSS_COLOURS[loss],
                    markerfacecolor=face,
                    markersize=7,
                )
        plane.plot([], [], "o", color=LOSS_COLOURS[loss], label=loss)
    name_plane(plane)
    draw_shares(bars, {label: runs for label, runs in done.items() if shares(runs)})
    figure.suptitle(
        "Each loss and start: hollow on pairs of the grammar, full on pairs of the policy"
    )
    figure.savefig(path)


def name_plane(axes: Any) -> None:
    """Name the axes of reward against KL."""
    axes.set_xlabel("KL(policy ‖ start) of a completion, nats")
    axes.set_ylabel("true reward gained over the start, points")
    axes.set_title("Reward gained against distance", loc="left", fontsize=11)
    axes.legend(loc="upper left", frameon=False)


def draw_frontier(axes: Any, frontiers: Sequence[Mapping[str, Any]]) -> None:
    """Draw the best gain by KL, with the interval of each start's curve as a band."""
    kls = frontiers[0]["kls"]
    for index, frontier in enumerate(frontiers):
        low, high = ([point[end] for point in frontier["gains"]] for end in (1, 2))
        label = "best reachable: each start's 95% interval" if index == 0 else None
        axes.fill_between(kls, low, high, color=INK, alpha=0.35, linewidth=0, label=label)
    means = [
        sum(frontier["gains"][index][0] for frontier in frontiers) / len(frontiers)
        for index in range(len(kls))
    ]
    axes.plot(kls, means, color=INK, linewidth=1.2)
    goal = [GOAL * value for value in means]
    axes.plot(kls, goal, color=GREY, linestyle="--", linewidth=1.2, label="90% of that gain")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def draw_shares(axes: Any, rows: Found, title: str = "Share of the best gain at the KL") -> None:
    """Draw shares as points with intervals, and each start as a small point, first row on top."""
    places = range(len(rows), 0, -1)
    axes.axvline(100 * GOAL, color=GREY, linestyle="--", linewidth=1.2)
    for place, runs in zip(places, rows.values(), strict=True):
        estimate = share(runs)
        axes.plot([100 * estimate.low, 100 * estimate.high], [place, place], color=BLUE, lw=2)
        for value in shares(runs):
            axes.plot(100 * value, place, "o", color=BLUE, markersize=4, alpha=0.4)
        axes.plot(100 * estimate.value, place, "o", color=BLUE, markersize=8)
        axes.annotate(
            f"{100 * estimate.value:.0f}%",
            (100 * estimate.value, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_yticks(list(places), list(rows))
    axes.set_ylim(0.4, len(rows) + 0.8)
    # Intervals of few starts reach beyond what a share can be; there the picture ends.
    axes.set_xlim(max(axes.get_xlim()[0], -10), 107)
    axes.set_xlabel("%; 95% interval over starts")
    axes.set_title(title, loc="left", fontsize=11)


def draw_studies(path: Path, found: Mapping[str, Found]) -> None:
    """Draw the smaller studies."""
    figure = canvas(13.5, 12.5)
    panels = figure.subplots(3, 2)
    for axes, name, title in (
        (panels[0, 0], "alone", "One thing taken away from the demo's recipe"),
        (panels[0, 1], "back", "All taken away, and one thing put back"),
        (panels[1, 1], "unpaired", "KTO without pairs"),
    ):
        draw_shares(axes, {k: runs for k, runs in found[name].items() if shares(runs)}, title)
    draw_noise(panels[1, 0], found["noise"])
    draw_betas(panels[2, 0], found["beta"])
    draw_small(panels[2, 1], found["small"])
    figure.savefig(path)


def draw_noise(axes: Any, found: Found) -> None:
    """Draw the share of the best gain by the kind of label, a line for each loss."""
    kinds = list(LABELS)
    for loss, colour in LOSS_COLOURS.items():
        labels = {kind: found.get(f"{loss}, {kind}") for kind in kinds}
        points = [(kinds.index(kind), share(r)) for kind, r in labels.items() if r and shares(r)]
        line(axes, points, colour, loss, scale=100)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("share of the best gain, %")
    axes.set_ylim(-10, 107)
    axes.set_title("Noise in labels", loc="left", fontsize=11)
    axes.legend(frameon=False)


def draw_betas(axes: Any, found: Found) -> None:
    """Draw where each loss ends at each beta: the gain against the KL."""
    for loss in BASES:
        runs = [r for label, r in found.items() if label.startswith(f"{loss}, ") and r]
        points = sorted((mean(r, "kl"), gain(r)) for r in runs)
        line(axes, points, LOSS_COLOURS[loss], loss)
        best = sorted((mean(r, "kl"), best_gain(r)) for r in runs if shares(r))
        axes.plot(*zip(*best, strict=True), color=INK, linewidth=0.8, alpha=0.5)
    axes.set_xlabel("KL, nats (thin: the best gain there)")
    axes.set_ylabel("reward gained, points")
    axes.set_title("A quarter to four times beta", loc="left", fontsize=11)
    axes.legend(frameon=False)


def draw_small(axes: Any, found: Found) -> None:
    """Draw the gain of full fine-tuning and LoRA on few pairs, by epochs."""
    for kind, colour in (("full", BLUE), ("LoRA", ORANGE)):
        runs = {epochs: found.get(f"{kind}, {epochs} epochs") for epochs in SMALL_EPOCHS}
        line(axes, [(epochs, gain(r)) for epochs, r in runs.items() if r], colour, kind)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SMALL_EPOCHS, [str(epochs) for epochs in SMALL_EPOCHS])
    axes.set_xlabel("epochs of 160 pairs")
    axes.set_ylabel("reward gained, points")
    axes.set_ylim(-1, 4)
    axes.set_title("Few pairs, seen often", loc="left", fontsize=11)
    axes.legend(frameon=False)


def line(
    axes: Any,
    points: Sequence[tuple[float, Estimate]],
    colour: str,
    label: str,
    scale: float = 1.0,
) -> None:
    """Draw estimates with their intervals, joined by a line."""
    if not points:
        return
    places = [place for place, _ in points]
    values = [scale * estimate.value for _, estimate in points]
    below = [scale * (estimate.value - estimate.low) for _, estimate in points]
    above = [scale * (estimate.high - estimate.value) for _, estimate in points]
    axes.errorbar(places, values, [below, above], color=colour, marker="o", capsize=3, label=label)


def canvas(width: float, height: float) -> Any:
    """Return an empty figure that draws without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
