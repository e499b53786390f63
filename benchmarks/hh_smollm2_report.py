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

CURVES = ("rewards/accuracies", "eval_rewards/accuracies")


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
    few: Comparison,
    about: Mapping[str, Any],
) -> None:
    """Write everything.

    Args:
        results: The files, without their endings.
        folder: Of the experiment; ``half0`` and ``half1`` are below.
        halves: What was found on each half.
        few: What was found with few conversations.
        about: The circumstances.
    """
    measured = read(folder, halves)
    numbers = {
        "about": dict(about),
        "held_out": {name: summary(its) for name, its in measured.items()},
        "difference": difference(measured),
        "rules": rules(next(iter(measured.values()))),
        "few": few_numbers(few),
        "answers": answers(few),
        "runs": [
            [part, run.name, run.state, run.seconds, run.tokens]
            for part, its in (("half 0", halves[0]), ("half 1", halves[1]), ("few", few))
            for run in its.runs
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


def few_numbers(few: Comparison) -> dict[str, Any]:
    """Return held-out numbers and curves of the second part."""
    return {
        "methods": {
            one.name: {name: list(its) for name, its in one.metrics.items()} for one in few.methods
        },
        "curves": {
            f"{curve.method}, {curve.metric}": [curve.steps, curve.values]
            for curve in few.curves
            if curve.metric in CURVES
        },
    }


def answers(few: Comparison, prompts: int = 6) -> dict[str, dict[str, str]]:
    """Return one answer of each method to some prompts."""
    found: dict[str, dict[str, str]] = {}
    for sample in few.samples:
        if sample.prompt in found or len(found) < prompts:
            found.setdefault(sample.prompt, {}).setdefault(sample.method, sample.completion)
    return found


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
        f"{' minus '.join(held_out)}: {_cell(numbers['difference']['value'], 100, 1)} points, "
        f"p = {numbers['difference']['p']:.2g}. Accuracy without training: "
        + ", ".join(f"{name} {_cell(its, 100, 1)}%" for name, its in numbers["rules"].items())
        + ".",
        "",
        f"Few conversations: {about['few']} for {about['epochs']} epochs.",
        "",
        *_few_lines(numbers["few"]),
        "",
        *_answer_lines(numbers["answers"]),
    ]


def _row(name: str, its: Mapping[str, Any]) -> str:
    cells = [
        name,
        _cell(its["accuracy"], 100, 1),
        f"{its['p_against_half']:.2g}",
        ", ".join(f"{100 * seed[0]:.1f}" for seed in its["by_seed"]),
        _cell(its["balanced_accuracy"], 100, 1),
        f"{its['p_balanced']:.2g}",
        _cell(its["margin"], 1, 2),
        _cell(its["chosen_log_ratio"], 1, 2),
        _cell(its["margin_length_correlation"], 1, 2),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(estimate: Sequence[float], factor: float, digits: int) -> str:
    value, low, high = (factor * number for number in Estimate(*estimate)[:3])
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _few_lines(few: Mapping[str, Any]) -> list[str]:
    columns = (("accuracy", 100, 1), ("margin", 1, 2), ("chosen_log_ratio", 1, 2), ("kl", 1, 1))
    lines = [
        "| method | held-out accuracy, % | margin, nats | chosen log-ratio, nats | KL, nats |",
        "|---|---|---|---|---|",
    ]
    for name, metrics in few["methods"].items():
        cells = [_cell(metrics[key], *how) if key in metrics else "" for key, *how in columns]
        lines.append(f"| {' | '.join([name, *cells])} |")
    lines += ["", "| accuracy by step | step and % |", "|---|---|"]
    for name, (steps, values) in few["curves"].items():
        if "eval" in name:
            points = ", ".join(f"{a}: {100 * b:.0f}" for a, b in zip(steps, values, strict=True))
            lines.append(f"| {name} | {points} |")
    return lines


def _answer_lines(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines = ["Answers at temperature 0.7, cut at 96 tokens:"]
    for prompt, its in found.items():
        question = [line for line in prompt.splitlines() if line.strip()]
        lines += ["", "> " + " / ".join(question)[-300:], ""]
        lines += [f"- **{name}**: {' '.join(text.split())}" for name, text in its.items()]
    return lines


def _picture(file: Path, numbers: Mapping[str, Any]) -> None:
    """Draw accuracies beside the rules, and accuracy over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    shown = {name: its["accuracy"] for name, its in numbers["held_out"].items()}
    shown |= {
        f"{name}, at equal lengths": its["balanced_accuracy"]
        for name, its in numbers["held_out"].items()
    }
    shown |= numbers["rules"]
    for place, (value, low, high, _) in enumerate(shown.values()):
        colour = "tab:blue" if place < len(shown) - len(numbers["rules"]) else "tab:gray"
        left.plot([100 * low, 100 * high], [place, place], color=colour)
        left.plot([100 * value], [place], "o", color=colour)
    left.set_yticks(range(len(shown)), shown)
    left.invert_yaxis()
    left.axvline(50, color="black", linestyle=":", linewidth=1)
    left.set_xlabel("held-out accuracy, %")
    left.set_title("All rows of HH helpful, each held out")
    colours = {"full": "tab:orange", "LoRA": "tab:blue"}
    for name, (steps, values) in numbers["few"]["curves"].items():
        method, metric = name.split(", ", 1)
        held_out = metric.startswith("eval")
        right.plot(
            steps,
            [100 * value for value in values],
            linestyle="-" if held_out else ":",
            marker="o" if held_out else None,
            color=colours.get(method),
            label=f"{method}, {'other conversations' if held_out else 'trained on'}",
        )
    right.set_xlabel("optimiser steps")
    right.set_ylabel("accuracy, %")
    right.set_title("Few conversations, several epochs")
    right.legend(fontsize=8)
    figure.savefig(file, dpi=150)
