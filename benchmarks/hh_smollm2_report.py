"""Table, numbers and picture of ``hh_smollm2.py``, from the pairs that its runs measured."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.compare import Comparison
from prefopt.evaluation import Estimate, bootstrap_interval, preference_accuracy
from prefopt.evaluation.statistics import (
    correct_pairs,
    correlation,
    length_balanced,
    length_baselines,
    paired_difference,
    paired_test,
)


class Measured(NamedTuple):
    """What the runs of one method found on all rows, each held out.

    Attributes:
        margins: Log-ratio to the start of the chosen answer minus the rejected one's; (S, B), nats,
            a row for each seed.
        chosen: Log-ratio of the chosen answer; (S, B), nats.
        start: Log-probs of both under the start; (B, 2), nats.
        lengths: Of both answers; (B, 2), tokens.
    """

    margins: Tensor
    chosen: Tensor
    start: Tensor
    lengths: Tensor

    @property
    def correct(self) -> Tensor:
        """1 where a pair is ordered as people did, 1/2 for a tie, else 0; mean of seeds; (B,)."""
        return correct_pairs(self.margins, torch.zeros_like(self.margins)).mean(0)


def write(
    results: Path,
    folder: Path,
    halves: Sequence[Comparison],
    about: Mapping[str, Any],
) -> None:
    """Write everything.

    Args:
        results: The files, without their endings.
        folder: Of the experiment; ``half0`` and ``half1`` are below.
        halves: What was found on each half.
        about: The circumstances.
    """
    measured = read(folder, halves)
    numbers = {
        "about": dict(about),
        "held_out": {name: summary(its) for name, its in measured.items()},
        "difference": difference(measured),
        "rules": rules(next(iter(measured.values()))),
        "runs": [
            [f"half {number}", run.name, run.state, run.seconds, run.tokens]
            for number, half in enumerate(halves)
            for run in half.runs
        ],
    }
    results.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    results.with_suffix(".md").write_text("\n".join(_lines(numbers)) + "\n")
    _picture(results.with_suffix(".png"), numbers)


def read(folder: Path, halves: Sequence[Comparison]) -> dict[str, Measured]:
    """Return what each method did on the rows of both halves, one after the other."""
    parts: dict[str, list[list[list[dict[str, float]]]]] = {}
    for number, half in enumerate(halves):
        for name in dict.fromkeys(run.method for run in half.runs if run.method != "start"):
            runs = [run for run in half.runs if run.method == name and run.state == "done"]
            files = [_pairs_file(folder / f"half{number}", run.name) for run in runs]
            parts.setdefault(name, []).append([_rows(file) for file in files])
    return {
        name: _measured([list(chain(*halves)) for halves in zip(*its, strict=True)])
        for name, its in parts.items()
    }


def _pairs_file(folder: Path, run: str) -> Path:
    return folder / "runs" / run / "evaluation" / "pairs.jsonl"


def _rows(file: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["row"])


def _measured(seeds: Sequence[Sequence[Mapping[str, float]]]) -> Measured:
    def column(name: str) -> Tensor:
        return torch.tensor([[row[name] for row in rows] for rows in seeds], dtype=torch.float64)

    chosen = column("chosen_logps") - column("ref_chosen_logps")
    rejected = column("rejected_logps") - column("ref_rejected_logps")
    start = torch.stack([column("ref_chosen_logps")[0], column("ref_rejected_logps")[0]], 1)
    lengths = torch.stack([column("chosen_tokens")[0], column("rejected_tokens")[0]], 1)
    return Measured(chosen - rejected, chosen, start, lengths)


def summary(measured: Measured) -> dict[str, Any]:
    """Return accuracies with intervals over rows, by seed too, margin, and what length explains."""
    correct = measured.correct
    balanced = length_balanced(*measured.lengths.T)
    longer = measured.lengths[:, 0] - measured.lengths[:, 1]
    zeros = torch.zeros_like(measured.margins[0])
    return {
        "accuracy": list(bootstrap_interval(correct)),
        "by_seed": [list(preference_accuracy(seed, zeros)) for seed in measured.margins],
        "p_against_half": paired_test(correct, torch.full_like(correct, 0.5)),
        "balanced_accuracy": list(bootstrap_interval(correct[balanced])),
        "p_balanced": paired_test(correct[balanced], torch.full_like(correct[balanced], 0.5)),
        "margin": list(bootstrap_interval(measured.margins.mean(0))),
        "chosen_log_ratio": list(bootstrap_interval(measured.chosen.mean(0))),
        "margin_length_correlation": list(correlation(measured.margins.mean(0), longer)),
    }


def difference(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Return the accuracy of the first method minus that of the second, row by row."""
    first, second = (its.correct for its in measured.values())
    return {"value": list(paired_difference(first, second)), "p": paired_test(first, second)}


def rules(measured: Measured) -> dict[str, list[float]]:
    """Return the accuracy of what needs no training."""
    by_length = length_baselines(*measured.lengths.T)
    return {
        "longer": list(by_length.longer),
        "shorter": list(by_length.shorter),
        "start's log-probs": list(preference_accuracy(*measured.start.T)),
        "start's mean log-probs": list(
            preference_accuracy(*(measured.start / measured.lengths).T),
        ),
    }


# What people read ---------------------------------------------------------------------------------


def _lines(numbers: Mapping[str, Any]) -> list[str]:
    about, held_out = numbers["about"], numbers["held_out"]
    machine = about["environment"]
    rows = next(iter(held_out.values()))["accuracy"][3]
    cut = f" Of a prompt the last turns, up to {about['words']} words." if about["words"] else ""
    return [
        f"SmolLM2-135M-Instruct on Anthropic HH helpful by DPO, commit {machine['commit'][:7]}, "
        f"{machine['date']}, {machine['device']}.",
        "",
        f"Held out: all {rows} rows, each by runs of every method ({about['seeds']} each), trained "
        f"on {about['train']} pairs of the other half, with seeds of their own.{cut} In brackets: "
        "95% intervals over rows.",
        "",
        "| method | accuracy, % | p against 50% | seeds, % | at equal lengths, % | p "
        "| margin, nats | chosen log-ratio, nats | margin and length |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(name, its) for name, its in held_out.items()),
        "",
        f"{' minus '.join(held_out)}: {cell(numbers['difference']['value'], 100, 1)} points, "
        f"p = {numbers['difference']['p']:.2g}. Accuracy without training: "
        + ", ".join(f"{name} {cell(its, 100, 1)}%" for name, its in numbers["rules"].items())
        + ".",
    ]


def _row(name: str, its: Mapping[str, Any]) -> str:
    cells = [
        name,
        cell(its["accuracy"], 100, 1),
        f"{its['p_against_half']:.2g}",
        ", ".join(f"{100 * seed[0]:.1f}" for seed in its["by_seed"]),
        cell(its["balanced_accuracy"], 100, 1),
        f"{its['p_balanced']:.2g}",
        cell(its["margin"], 1, 2),
        cell(its["chosen_log_ratio"], 1, 2),
        cell(its["margin_length_correlation"], 1, 2),
    ]
    return f"| {' | '.join(cells)} |"


def cell(estimate: Sequence[float], factor: float, digits: int) -> str:
    """Return an estimate and its interval, as read; ``factor`` is 100 for per cent."""
    value, low, high = (factor * number for number in Estimate(*estimate)[:3])
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _picture(file: Path, numbers: Mapping[str, Any]) -> None:
    """Draw accuracies beside the rules."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = {name: its["accuracy"] for name, its in numbers["held_out"].items()}
    shown |= {
        f"{name}, at equal lengths": its["balanced_accuracy"]
        for name, its in numbers["held_out"].items()
    }
    shown |= numbers["rules"]
    for place, (value, low, high, _) in enumerate(shown.values()):
        colour = "tab:blue" if place < len(shown) - len(numbers["rules"]) else "tab:gray"
        axes.plot([100 * low, 100 * high], [place, place], color=colour)
        axes.plot([100 * value], [place], "o", color=colour)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.axvline(50, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("held-out accuracy, %")
    axes.set_title("All rows of HH helpful, each held out")
    figure.savefig(file, dpi=150)
