"""From what was measured of the reference store to JSON, tables and a chart."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OURS, TRL, PALE = "#2a6f97", "#9a8c98", "#e09f3e"

Found = Mapping[str, Any]


def write_results(folder: Path, name: str, record: Found, found: Found, console: Any) -> None:
    """Write JSON, Markdown and a chart of what was measured so far, and print the Markdown."""
    file = folder / name
    result = json.dumps({"record": record, "found": found}, indent=1)
    file.with_name(name + ".json").write_text(result + "\n")
    text = _markdown(record, found)
    file.with_name(name + ".md").write_text(text)
    draw(found, file.with_name(name + ".png"))
    console.print(text, markup=False)


# Tables -------------------------------------------------------------------------------------------


def _markdown(record: Found, found: Found) -> str:
    sections = {"fill": _fill, "start": _start, "serve": _serve, "look": _look}
    lines = ["# The reference store", ""]
    for part, section in sections.items():
        if part in found:
            lines += [*section(found[part]), ""]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines.append(
        f"Commit {record['commit'][:12]}, {record['date']}, {record['device']}, "
        f"{record['threads_per_process']} threads a process, {record['dtype']}, seed "
        f"{record['seed']}; model {record['size']}, {record['pairs']} pairs of HH, batches of "
        f"{record['batch']}. {versions}."
    )
    return "\n".join(lines) + "\n"


def _fill(found: Found) -> list[str]:
    columns = (
        "side",
        "seconds",
        "pairs/s",
        "of prefopt",
        "CPU seconds",
        "forward passes",
        "values differ by",
    )
    ours = found["sides"]["prefopt"]["seconds"]["median"]
    rows = []
    for name, side in found["sides"].items():
        seconds = side["seconds"]
        spread = f" ({seconds['p20']:.1f}-{seconds['p80']:.1f})" if found["repeats"] > 1 else ""
        rows.append(
            (
                name,
                f"{seconds['median']:.1f}{spread}",
                f"{found['pairs'] / seconds['median']:.1f}",
                f"{seconds['median'] / ours:.2f}x",
                f"{side['cpu_seconds']['median']:.1f}",
                str(side["forwards"]),
                f"{side['largest_difference']:.1g} nats",
            )
        )
    return [
        f"## Filling: {found['pairs']} pairs",
        "",
        *_table(columns, rows),
        "",
        "From the digest of the weights to the last value on disk; data was prepared before. All "
        f"sides in one run, in {found['turns']} turns. prefopt fills "
        f"{found['ratio_to_default']:.2f} times as fast as TRL at its default batch, "
        f"{found['ratio_to_best']:.2f} times as fast as TRL at the best of the batches tried. The "
        "values are sums over a completion.",
        "",
        *_storage(found["storage"]),
    ]


def _storage(found: Found) -> list[str]:
    text = (
        f"The file has {found['bytes']:,} bytes for {found['completions']:,} different completions "
        f"of {found['tokens']:,} tokens. With 80 bytes a completion, "
        f"{found['bytes_per_token_after_80_a_completion']:.2f} bytes a token are left."
    )
    if found["tables"]:
        text += (
            f" By table: {found['bytes_per_token']:.2f} bytes a token, "
            f"{found['bytes_per_completion']:.1f} bytes a completion."
        )
    return [text]


def _start(found: Found) -> list[str]:
    columns = ("run", "side", "seconds to the first step", "of them reference", "passes")
    rows = [
        (
            run,
            side,
            f"{said['seconds']:.2f}",
            f"{said['reference_seconds']:.2f}",
            str(said["reference_forwards"]),
        )
        for run, sides in found["runs"].items()
        for side, said in sides.items()
    ]
    other = found["runs"]["another loss"]
    ratio = other["trl"]["seconds"] / other["prefopt"]["seconds"]
    return [
        f"## To the first step, {found['pairs']} pairs",
        "",
        *_table(columns, rows),
        "",
        "Fresh processes, from making the model to the end of the first optimiser step, imports "
        "left out. Runs of a side share all their folders; the dataset is on disk, so that TRL's "
        "cache is kept. Passes are forward passes of the reference. With another loss prefopt "
        f"is there {ratio:.2f} times as fast.",
    ]


def _serve(found: Found) -> list[str]:
    return [
        f"## Serving: {found['steps']} training steps",
        "",
        f"{found['calls']} look-ups took {found['share_of_look_up']:.3%} of the time of the steps "
        f"(median {found['seconds_per_step']['median']:.3f} s); with the sums over completions, "
        f"{found['share_of_serving']:.3%}.",
    ]


def _look(found: Found) -> list[str]:
    spread = found["pairs_per_s_of_parts"]
    return [
        f"## Looking up: a store of {found['pairs']:,} pairs, read in random order",
        "",
        f"{found['pairs_per_s']:,.0f} pairs a second ({spread['p20']:,.0f}-{spread['p80']:,.0f}), "
        f"which is {found['completions_per_s']:,.0f} completions a second, each digested, found, "
        f"checked and compared. Resident memory was {found['before_mb']:.0f} MB before and "
        f"{found['after_mb']:.0f} MB after. The store was written in {found['build_seconds']:.0f} "
        "s.",
        "",
        *_storage(found["storage"]),
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


# Chart --------------------------------------------------------------------------------------------


def draw(found: Found, path: Path) -> None:
    """Draw seconds to fill, seconds to the first step, and rate and memory of looking up."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"fill": _draw_fill, "start": _draw_start, "look": _draw_look}
    shown = [part for part in panels if part in found]
    if not shown:
        return
    figure, axes = plt.subplots(
        1, len(shown), figsize=(4.6 * len(shown), 3.8), squeeze=False, constrained_layout=True
    )
    for part, axis in zip(shown, axes[0], strict=True):
        panels[part](axis, found[part])
        axis.spines[["top"]].set_visible(False)
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_fill(axis: Any, found: Found) -> None:
    names = list(found["sides"])
    seconds = [found["sides"][name]["seconds"]["median"] for name in names]
    bars = axis.bar(range(len(names)), seconds, color=[OURS] + [TRL] * (len(names) - 1))
    labels = [f"{second / seconds[0]:.1f}x" for second in seconds]
    axis.bar_label(bars, labels, padding=3, weight="bold")
    axis.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axis.set_ylabel("seconds")
    axis.set_title(f"to fill {found['pairs']} pairs", loc="left")
    axis.spines[["right"]].set_visible(False)
    axis.margins(y=0.15)


def _draw_start(axis: Any, found: Found) -> None:
    runs = list(found["runs"])
    for side, offset, colour in (("prefopt", -0.2, OURS), ("trl", 0.2, TRL)):
        seconds = [found["runs"][run][side]["seconds"] for run in runs]
        name = "TRL" if side == "trl" else side
        bars = axis.bar(np.arange(len(runs)) + offset, seconds, 0.38, color=colour, label=name)
        axis.bar_label(bars, [f"{second:.1f}" for second in seconds], padding=3)
    axis.set_xticks(range(len(runs)), [run.replace(" ", "\n", 1) for run in runs])
    axis.set_ylabel("seconds")
    axis.set_title("to the first step", loc="left")
    axis.legend(frameon=False)
    axis.spines[["right"]].set_visible(False)
    axis.margins(y=0.15)


def _draw_look(axis: Any, found: Found) -> None:
    pairs = np.cumsum([part["pairs"] for part in found["parts"]])
    rates = [part["pairs"] / part["seconds"] / 1000 for part in found["parts"]]
    axis.plot(pairs, rates, color=OURS, marker="o")
    axis.set_xlabel("pairs looked up at random")
    axis.set_ylabel("thousand pairs a second", color=OURS)
    memory = axis.twinx()
    resident = [found["before_mb"], *(part["resident_mb"] for part in found["parts"])]
    memory.plot([0, *pairs], resident, color=PALE)
    memory.set_ylabel("resident memory, MB", color=PALE)
    memory.set_ylim(0, 1.3 * max(resident))
    memory.spines[["top"]].set_visible(False)
    axis.set_title(f"a store of {found['pairs']:,} pairs", loc="left")
