"""From the timed steps of both sides to medians, a table, and charts."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

COLOURS = {"prefopt": "#2a6f97", "trl": "#c9ada7", "packed-fa2": "#9a8c98", "before": "#89b0ae"}
LABELS = {"prefopt": "prefopt", "trl": "TRL", "packed-fa2": "packed rows", "before": "before"}
FIRST_LOSSES = 5  # steps whose losses are compared

NOTES = {
    "kto": (
        "KTO: a batch is the same pairs on both sides; TRL gets them as twice as many thumbs. Both "
        "score the same mismatched completions, TRL's rotation of its batch."
    ),
    "orpo": (
        "ORPO: TRL also takes the prompt's tokens into its likelihood term and weighs by token "
        "over the batch; ours takes the completion's, per sequence (the paper's Eq. 6). So the "
        "losses differ by definition, and what is compared is the first step's, after TRL's term "
        "was replaced by the mean log-prob per chosen token that it logs."
    ),
}


def summarise(
    take: Mapping[str, Any], flops: Sequence[int], batch: int, warmup: int
) -> dict[str, Any]:
    """Return what the timed steps say.

    Args:
        take: ``measured`` steps and ``memory`` of each side, and ``matmul_flops_per_s``.
        flops: Useful operations of each step, those of the warm-up included.
        batch: Pairs a step.
        warmup: Steps that do not count.
    """
    rate = float(np.median(take["matmul_flops_per_s"]))
    useful = np.array(flops[warmup:], dtype=float)
    sides: dict[str, Any] = {}
    for side, steps in take["measured"].items():
        timed = steps[warmup:]
        seconds = np.array([step["seconds"] for step in timed])
        memory = take["memory"][side]
        sides[side] = {
            "pairs_per_s": _spread(batch / seconds),
            "seconds_per_step": _spread(seconds),
            "mean_pairs_per_s": batch * len(seconds) / float(seconds.sum()),
            "useful_flops_per_s": _spread(useful / seconds),
            "fraction_of_matmul": _spread(useful / seconds / rate),
            "peak_mb": memory["peak_mb"],
            "process_peak_mb": memory["process_peak_mb"],
            "positions_per_step": float(np.mean([step["positions"] for step in timed])),
            "head_positions_per_step": float(np.mean([step["head_positions"] for step in timed])),
        }
    summary: dict[str, Any] = {"sides": sides, "matmul_gflops_per_s": _spread(_giga(take))}
    rivals = [side for side in sides if side != "prefopt"] if "prefopt" in sides else []
    summary["against"] = {
        rival: _compared(take["measured"], sides, rival, warmup) for rival in rivals
    }
    return summary


def _giga(take: Mapping[str, Any]) -> Any:
    return np.array(take["matmul_flops_per_s"]) / 1e9


def _spread(values: Any) -> dict[str, float]:
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def _compared(
    measured: Mapping[str, Sequence[Mapping[str, float]]],
    sides: Mapping[str, Any],
    rival: str,
    warmup: int,
) -> dict[str, Any]:
    ours, theirs = sides["prefopt"], sides[rival]
    own, other = (
        np.array([step["seconds"] for step in measured[side][warmup:]])
        for side in ("prefopt", rival)
    )
    return {
        "ratio": {
            "of_steps": _spread(other / own),
            "of_totals": float(other.sum() / own.sum()),
        },
        "memory_ratio": ours["peak_mb"] / theirs["peak_mb"],
        "process_memory_ratio": ours["process_peak_mb"] / theirs["process_peak_mb"],
        "first_losses": _first_losses({side: measured[side] for side in ("prefopt", rival)}, rival),
    }


def _first_losses(
    measured: Mapping[str, Sequence[Mapping[str, float]]], rival: str
) -> dict[str, Any]:
    """Return how far apart the first steps of both sides are."""
    first = {side: steps[:FIRST_LOSSES] for side, steps in measured.items()}
    losses = {side: [step["loss"] for step in steps] for side, steps in first.items()}
    norms = {side: [step["grad_norm"] for step in steps] for side, steps in first.items()}
    completions = first[rival][0].get("loss_of_completions")
    return {
        "losses": losses,
        "grad_norms": norms,
        "first_loss_of_completions": completions,
        "difference_of_first": (
            None if completions is None else abs(losses["prefopt"][0] - completions)
        ),
        "largest_difference": max(
            abs(a - b) for a, b in zip(losses["prefopt"], losses[rival], strict=True)
        ),
        "largest_relative_difference_of_grad_norms": max(
            abs(a - b) / max(abs(b), 1e-30)
            for a, b in zip(norms["prefopt"], norms[rival], strict=True)
        ),
    }


# Tables -------------------------------------------------------------------------------------------

COLUMNS = (
    "model",
    "loss",
    "data",
    "side",
    "pairs/s (20-80%)",
    "prefopt is faster by (20-80% of steps)",
    "peak MB",
    "prefopt's memory",
    "positions",
    "in head",
    "of matmul",
    "loss differs by",
)


def table_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each side of each comparison, under ``COLUMNS``."""
    rows = []
    for result in results:
        for side, found in result["sides"].items():
            compared = result["against"].get(side)
            rows.append(
                (
                    result["size"],
                    result["loss"],
                    result["data"],
                    _side_text(result, side),
                    _rate_text(found),
                    _ratio_text(compared["ratio"]) if compared else "",
                    f"{found['peak_mb']:.0f}",
                    f"{compared['memory_ratio']:.2f}x" if compared else "",
                    f"{found['positions_per_step']:.0f}",
                    f"{found['head_positions_per_step']:.0f}",
                    f"{found['fraction_of_matmul']['median']:.0%}",
                    _difference_text(compared["first_losses"]) if compared else "",
                )
            )
    return rows


def _side_text(result: Mapping[str, Any], side: str) -> str:
    """Return the name of a side; a layout that shares nothing is said."""
    padded = side == "prefopt" and result["hello"][side]["layout"] != "shared_prefix"
    return LABELS[side] + (" (padded)" if padded else "")


def _rate_text(found: Mapping[str, Any]) -> str:
    spread = found["pairs_per_s"]
    return f"{_short(found['mean_pairs_per_s'])} ({_short(spread['p20'])}-{_short(spread['p80'])})"


def _ratio_text(ratio: Mapping[str, Any]) -> str:
    steps = ratio["of_steps"]
    return f"{ratio['of_totals']:.2f}x ({steps['p20']:.2f}-{steps['p80']:.2f})"


def _difference_text(first: Mapping[str, Any]) -> str:
    if first["difference_of_first"] is not None:
        return f"{first['difference_of_first']:.1g} (see below)"
    return f"{first['largest_difference']:.1g}"


def _short(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{min(digits, 3)}f}"


def write_results(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    console: Any,
) -> None:
    """Print the table, and write JSON, Markdown and charts."""
    file = folder / f"throughput_{name}"
    file.with_name(file.name + ".json").write_text(
        json.dumps({"record": record, "results": results}, indent=1) + "\n"
    )
    rows = table_rows(results)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    file.with_name(file.name + ".md").write_text(_markdown(record, results, rows))
    draw(results, file.with_name(file.name + ".png"))


def _markdown(
    record: Mapping[str, Any], results: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[str]]
) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    steps = results[0]["steps"]
    lines += [
        "",
        f"Commit {record['commit'][:12]}, {record['date']}, {record['device']}, "
        f"{record['threads_per_process']} threads a process, {record['dtype']}, seed "
        f"{record['seed']}, batches of {record['batch']}, {steps} steps of each side after "
        f"{results[0]['warmup']} for warm-up, {'apart' if results[0]['apart'] else 'in turns'}. "
        f"{_setting(results[0])} {versions}.",
        "",
        "Ratios are of the time that all steps took, of the same batches; in brackets the 20th and "
        "80th percentile over steps. Peak MB is "
        "that of the timed steps (resident memory of a fresh process, or the GPU's allocator). "
        "Positions pass the transformer in a step, padding and forward passes without gradient "
        "included; those in the head meet the vocabulary. `of matmul` is the rate of useful "
        "operations (`throughput_flops.py`) over that of matrix products measured in between, "
        f"median {results[0]['matmul_gflops_per_s']['median']:.0f} GFLOP/s in the first row. The "
        f"losses compared are those of the first {FIRST_LOSSES} steps; the largest difference is "
        "given.",
    ]
    for loss, note in NOTES.items():
        if any(result["loss"] == loss for result in results):
            lines += ["", note]
    if record.get("note"):
        lines += ["", str(record["note"])]
    return "\n".join(lines) + "\n"


def _setting(result: Mapping[str, Any]) -> str:
    """Return what both sides use, and TRL's attention: ours is the engine's."""
    said = next(iter(result["hello"].values()))
    text = f"Optimiser {said['optimiser']}, no gradient checkpointing, reference precomputed."
    trl = result["hello"].get("trl")
    return text + (f" TRL attends with {trl['attention']}." if trl else "")


# Charts -------------------------------------------------------------------------------------------


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw pairs/s and peak memory of both sides; a row of panels for each size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(result["size"] for result in results))
    most = max(sum(result["size"] == size for result in results) for size in sizes)
    figure, grid = plt.subplots(
        len(sizes),
        2,
        figsize=(max(9.0, 2.5 + 2.0 * most), 3.6 * len(sizes) + 0.4),
        squeeze=False,
        constrained_layout=True,
    )
    for row, size in zip(grid, sizes, strict=True):
        shown = [result for result in results if result["size"] == size]
        _draw_rates(row[0], shown)
        _draw_memory(row[1], shown)
        for axis in row:
            names = [f"{result['loss']}\n{result['data']}" for result in shown]
            axis.set_xticks(range(len(shown)), names)
            axis.set_title(size, loc="left", weight="bold")
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(y=0.15)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_rates(axis: Any, results: Sequence[Mapping[str, Any]]) -> None:
    for side, at, found in _bars(results):
        low, high = np.array([[f["pairs_per_s"][k] for k in ("p20", "p80")] for f in found]).T
        middle = np.array([f["mean_pairs_per_s"] for f in found])
        whiskers = {
            "yerr": np.maximum([middle - low, high - middle], 0),
            "capsize": 3,
            "ecolor": "#444444",
        }
        axis.bar(
            at, middle, width=_width(results), color=COLOURS[side], label=LABELS[side], **whiskers
        )
    for place, result in enumerate(results):
        for rival, compared in result["against"].items():
            top = result["sides"][rival]["pairs_per_s"]["p80"]
            text = f"{compared['ratio']['of_totals']:.1f}x slower"
            _annotate(axis, place + _offset(rival, results), top, text)
    axis.set_ylabel("pairs/s, and 20-80% of steps")


def _draw_memory(axis: Any, results: Sequence[Mapping[str, Any]]) -> None:
    for side, at, found in _bars(results):
        axis.bar(
            at, [f["peak_mb"] / 1000 for f in found], width=_width(results), color=COLOURS[side]
        )
    for place, result in enumerate(results):
        for rival, compared in result["against"].items():
            top = result["sides"][rival]["peak_mb"] / 1000
            text = f"{1 / compared['memory_ratio']:.1f}x more"
            _annotate(axis, place + _offset(rival, results), top, text)
    axis.set_ylabel("peak memory, GB")


def _bars(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any, list[Any]]]:
    """Return each side that was measured, where its bars stand, and what was found."""
    bars = []
    for side in COLOURS:
        places = [place for place, result in enumerate(results) if side in result["sides"]]
        found = [results[place]["sides"][side] for place in places]
        if found:
            bars.append((side, np.array(places, dtype=float) + _offset(side, results), found))
    return bars


def _sides(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return [side for side in COLOURS if any(side in result["sides"] for result in results)]


def _width(results: Sequence[Mapping[str, Any]]) -> float:
    return 0.72 / len(_sides(results))


def _offset(side: str, results: Sequence[Mapping[str, Any]]) -> float:
    """Return where the bar of a side stands beside the middle of its group."""
    sides = _sides(results)
    return (sides.index(side) - (len(sides) - 1) / 2) * _width(results) * 1.05


def _annotate(axis: Any, x: float, y: float, text: str) -> None:
    where = {"xytext": (0, 3), "textcoords": "offset points"}
    axis.annotate(text, (x, y), ha="center", weight="bold", **where)
