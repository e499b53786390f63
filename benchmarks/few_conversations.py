"""Over-fitting a few hundred conversations: all weights beside LoRA, by DPO on a real model.

    python benchmarks/few_conversations.py --folder /tmp/few [--device cuda] [--jobs 2]

SmolLM2-135M-Instruct (``smollm2.py``) is trained on few conversations of Anthropic HH helpful for
several epochs, with all weights and with LoRA, and looked at on others after each: on what it was
trained on both come to order every pair rightly, so the others tell what was learnt. Answers of
both stand beside the start's. Methods and options are those of ``hh_smollm2.py``.

Ended at any moment, the same command goes on. The table, the numbers and the picture go to
``benchmarks/results/few_conversations.{md,json,png}``; the whole report stays in the folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hh_smollm2
import smollm2
from datasets import Dataset
from hh_smollm2_report import cell

from prefopt.compare import Comparison, compare

CURVES = ("rewards/accuracies", "loss")
COLOURS = {"full": "tab:orange", "LoRA": "tab:blue"}


class Sizes(NamedTuple):
    """How much is done.

    Attributes:
        few: Conversations to train on.
        epochs: Over them.
        beside: Others, to look at every epoch.
        answers: Prompts to answer.
        words: Of a prompt, of which the last turns are kept; 0 for all turns.
    """

    few: int = 200
    epochs: int = 3
    beside: int = 120
    answers: int = 12
    words: int = 60


def main() -> None:
    """Compare, and write the results."""
    asked = smollm2.parser(__doc__.splitlines()[0], "few_conversations", sizes=5).parse_args()
    setting = smollm2.set_up(asked)
    sizes = Sizes(*asked.sizes) if asked.sizes else Sizes()
    halves = hh_smollm2.deal(0, sizes.words)
    found = compare(
        str(setting.model),
        Dataset.from_list(halves[0][-sizes.few - sizes.beside :]),
        asked.folder / "comparison",
        methods=[method | {"num_train_epochs": sizes.epochs} for method in hh_smollm2.METHODS],
        seeds=1,
        eval_dataset=Dataset.from_list(halves[1][-sizes.beside :]),
        validation=sizes.beside / (sizes.few + sizes.beside),
        options=hh_smollm2.OPTIONS | setting.options | {"eval_strategy": "epoch"},
        evaluation=hh_smollm2.evaluation(sizes.answers),
        title="All weights and LoRA on few conversations",
        resources=setting.resources,
        command="python benchmarks/few_conversations.py",
    )
    write(asked.results, found, {"environment": setting.about} | sizes._asdict())


def write(results: Path, found: Comparison, about: Mapping[str, Any]) -> None:
    """Write table, numbers and picture."""
    numbers = {
        "about": dict(about),
        "methods": {
            one.name: {name: list(its) for name, its in one.metrics.items()}
            for one in found.methods
        },
        "curves": [
            [one.method, one.metric, list(one.steps), list(one.values)]
            for one in found.curves
            if one.metric.removeprefix("eval_") in CURVES
        ],
        "answers": answers(found, about["answers"]),
        "runs": [[run.name, run.state, run.seconds, run.tokens] for run in found.runs],
    }
    results.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    results.with_suffix(".md").write_text("\n".join(_lines(numbers)) + "\n")
    _picture(results.with_suffix(".png"), numbers["curves"])


def answers(found: Comparison, prompts: int) -> dict[str, dict[str, str]]:
    """Return one answer of each method to some prompts."""
    beside: dict[str, dict[str, str]] = {}
    for sample in found.samples:
        if sample.prompt in beside or len(beside) < prompts:
            beside.setdefault(sample.prompt, {}).setdefault(sample.method, sample.completion)
    return beside


def _lines(numbers: Mapping[str, Any]) -> list[str]:
    about = numbers["about"]
    machine = about["environment"]
    lines = [
        f"DPO of SmolLM2-135M-Instruct on {about['few']} conversations of Anthropic HH helpful for "
        f"{about['epochs']} epochs, commit {machine['commit'][:7]}, {machine['date']}, "
        f"{machine['device']}. Held out: {about['beside']} conversations of the other half, whose "
        "questions are others. In brackets: 95% intervals over rows.",
        "",
        "| method | held-out accuracy, % | margin, nats | chosen log-ratio, nats |",
        "|---|---|---|---|",
    ]
    columns = (("accuracy", 100, 1), ("margin", 1, 2), ("chosen_log_ratio", 1, 2))
    for name, metrics in numbers["methods"].items():
        cells = [cell(metrics[key], *how) if key in metrics else "" for key, *how in columns]
        lines.append(f"| {' | '.join([name, *cells])} |")
    lines += [
        "",
        f"After each epoch, on {about['beside']} conversations beside those of training:",
        "",
        "| method | accuracy, % | loss |",
        "|---|---|---|",
    ]
    curves = {(method, metric): values for method, metric, _, values in numbers["curves"]}
    for method in dict.fromkeys(method for method, *_ in numbers["curves"]):
        accuracies = curves.get((method, "eval_rewards/accuracies"), ())
        losses = curves.get((method, "eval_loss"), ())
        cells = [
            ", ".join(f"{100 * value:.1f}" for value in accuracies),
            ", ".join(f"{value:.3f}" for value in losses),
        ]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return [*lines, "", *_answer_lines(numbers["answers"])]


def _answer_lines(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines = ["Answers at temperature 0.7, cut at 96 tokens:"]
    for prompt, its in found.items():
        question = [line for line in prompt.splitlines() if line.strip()]
        lines += ["", "> " + " / ".join(question)[-300:], ""]
        lines += [f"- **{name}**: {' '.join(text.split())}" for name, text in its.items()]
    return lines


def _picture(file: Path, curves: Sequence[Sequence[Any]]) -> None:
    """Draw accuracy and loss over steps, of what was trained on and of others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    titles = dict(zip(CURVES, ("accuracy", "DPO loss, nats"), strict=True))
    for axes, (wanted, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for method, metric, steps, values in curves:
            if metric.removeprefix("eval_") != wanted:
                continue
            others = metric.startswith("eval_")
            axes.plot(
                steps,
                values,
                linestyle="-" if others else ":",
                marker="o" if others else None,
                color=COLOURS.get(method),
                label=f"{method}, {'other conversations' if others else 'trained on'}",
            )
        axes.set_xlabel("optimiser steps")
        axes.set_title(title)
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
