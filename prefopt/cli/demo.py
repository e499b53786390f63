"""``prefopt demo``: align a tiny language model on embedded data with several methods.

Nothing is downloaded: ``prefopt.toy`` generates the language, its true reward and the preferences,
and a tiny Llama is fitted to the language first.
"""

import argparse
import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from prefopt.cli.errors import UserError, user_errors

if TYPE_CHECKING:
    from prefopt.compare import Comparison
    from prefopt.evaluation import FrontierPoint
    from prefopt.toy.experiment import Experiment, ExperimentSize, Measurement, MethodRun

DEFAULT_LOSSES = ("dpo", "ipo", "kto", "orpo")
DEFAULT_OUTPUT = Path("demo_output")
# How the report's numbers are measured; the picture has more samples of its own.
EVALUATION = {
    "reward": "prefopt.toy.reward:true_reward",
    "samples_per_prompt": 32,
    "max_new_tokens": 32,
    "batch_size": 256,
    "use_cpu": True,
}
# What the next command trains with: the first that the demo did not.
NEXT_LOSSES = ("discopop", "hinge", "ipo", "dpo")


def main(argv: Sequence[str]) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="prefopt demo",
        description="Align a tiny language model on embedded data with several methods, and plot "
        "the true reward that each reaches against the best reachable. No download; about two "
        "minutes on two CPU cores.",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=DEFAULT_OUTPUT, help=f"default: {DEFAULT_OUTPUT}"
    )
    parser.add_argument(
        "--losses",
        nargs="+",
        default=list(DEFAULT_LOSSES),
        metavar="LOSS",
        help=f"losses to train with; default: {' '.join(DEFAULT_LOSSES)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and samples")
    parser.add_argument("--steps", type=int, help="optimiser steps of each method; default: 100")
    options = parser.parse_args(list(argv))
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps must be at least 1, got {options.steps}")
    return run_demo(
        options.output_dir, losses=options.losses, seed=options.seed, steps=options.steps
    )


def run_demo(
    output_dir: Path,
    *,
    losses: Sequence[str] = DEFAULT_LOSSES,
    seed: int = 0,
    steps: int | None = None,
    size: "ExperimentSize | None" = None,
    console: Console | None = None,
) -> int:
    """Fit a start, train each method from it, measure, plot and print; return the exit code.

    Args:
        output_dir: Gets the start, the data as jsonl, the trained policies with their logs in
            ``runs``, the report of the comparison, ``demo.json`` (all numbers) and ``demo.png``.
        losses: Losses to train with.
        seed: Of data, weights and samples.
        steps: Optimiser steps of each method; None for those of ``size``.
        size: Size of the experiment; None for that of the demo.
        console: Where to print; None for standard output.

    Raises:
        UserError: If a loss is unknown or does not train on pairs, if the folder cannot be made, or
            if a run fails.
    """
    begin = time.perf_counter()
    console = console or Console(highlight=False)
    console.print("[bold]prefopt demo[/]: a tiny language model learns from preferences")
    with console.status("loading libraries"), user_errors():
        from prefopt.toy.experiment import Experiment, ExperimentSize
        from prefopt.toy.plot import plot_experiment

        output_dir.mkdir(parents=True, exist_ok=True)
        size = size or ExperimentSize()
        experiment = Experiment(
            losses, seed=seed, size=size if steps is None else replace(size, steps=steps)
        )
    with _one_thread():
        frontier = _fit(experiment, output_dir, console)
        comparison = _compare(experiment, output_dir, frontier, console)
        runs = _measure(experiment, output_dir, comparison, console)
    picture = output_dir / "demo.png"
    count = experiment.size.frontier_samples * len(experiment.evaluator.prompts)
    plot_experiment(
        picture,
        runs,
        frontier,
        best_accuracy=experiment.evaluator.best_accuracy,
        frontier_samples=count,
        subtitle=f"prefopt demo, seed {seed}: {len(experiment.train_pairs):,} pairs, "
        f"{len(experiment.held_out_pairs):,} held out; crosses are 95% intervals",
    )
    numbers = {
        "seed": seed,
        "size": asdict(experiment.size),
        "best_accuracy": experiment.evaluator.best_accuracy,
        "frontier": [point._asdict() for point in frontier],
        "runs": [
            {**asdict(run), "folder": f"runs/{its.name}"}
            for run, its in zip(runs, comparison.runs[1:], strict=True)
        ],
    }
    (output_dir / "demo.json").write_text(json.dumps(numbers, indent=1, default=_plain))
    _print_results(console, experiment, runs)
    console.print(f"\n{comparison.verdict}", markup=False)
    console.print(f"\nPicture: [bold]{picture}[/]   all numbers: {output_dir / 'demo.json'}")
    if (output_dir / "report.html").is_file():
        console.print(f"Report: {output_dir / 'report.html'}")
    console.print("Next, another loss from the same start on the same pairs:\n")
    console.print(next_command(output_dir, losses, experiment.size), soft_wrap=True, markup=False)
    console.print(f"\n[dim]{time.perf_counter() - begin:.0f} s in all[/]")
    return 0


def next_command(output_dir: Path, losses: Sequence[str], size: "ExperimentSize") -> str:
    """Return a command that trains from the demo's start, on its pairs, with another loss."""
    from prefopt.toy.experiment import METHODS, TRAINING

    name = next((name for name in NEXT_LOSSES if name not in losses), NEXT_LOSSES[0])
    options = {
        "model": output_dir / "start",
        "dataset": output_dir / "pairs.jsonl",
        "loss_type": name,
        "output_dir": output_dir / name,
        "per_device_train_batch_size": size.batch_size,
        "max_steps": size.steps,
        "learning_rate": TRAINING["learning_rate"],
        **METHODS[name].options,
    }
    words = ["prefopt", "train"]
    for option, value in options.items():
        words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return shlex.join(words)


def _fit(experiment: "Experiment", output_dir: Path, console: Console) -> "list[FrontierPoint]":
    """Fit the start and sample it for the limit, with a progress bar for each; return the limit."""
    size = experiment.size
    with _progress(console) as progress:
        fit = progress.add_task("fit a tiny Llama to the language", total=size.fit_steps)
        limit = progress.add_task("sample it, for the limit", total=None, start=False)
        experiment.fit(lambda loss: progress.advance(fit))
        with _log_to(output_dir / "start"):
            experiment.save(output_dir)
        progress.start_task(limit)
        progress.update(limit, total=size.frontier_samples * len(experiment.evaluator.prompts))
        return experiment.evaluator.frontier(
            size.frontier_samples,
            min_effective_samples=size.min_effective_samples,
            on_samples=lambda count: progress.advance(limit, count),
        )


def _compare(
    experiment: "Experiment",
    output_dir: Path,
    frontier: "Sequence[FrontierPoint]",
    console: Console,
) -> "Comparison":
    """Train and measure the methods as ``prefopt compare`` does."""
    from datasets import Dataset

    from prefopt.compare import compare

    with user_errors(), _log_to(output_dir):
        comparison = compare(
            str(output_dir / "start"),
            Dataset.from_list(experiment.train_pairs),
            output_dir,
            methods=[
                {"name": method.loss_type, "loss_type": method.loss_type, **method.options}
                for method in experiment.methods
            ],
            seeds=[experiment.seed],
            eval_dataset=Dataset.from_list(experiment.held_out_pairs),
            validation=0,
            options=experiment.run_options,
            evaluation=EVALUATION,
            frontier=frontier,
            title="prefopt demo: a tiny language model learns from preferences",
            command=f"prefopt demo --output_dir {shlex.quote(str(output_dir))}",
            print_table=False,
            console=console,
        )
    failed = [run for run in comparison.runs if run.state != "done"]
    if failed:
        log = output_dir / "runs" / failed[0].name / "log.txt"
        raise UserError(f"{failed[0].method} failed: {failed[0].error}; {log} says more")
    return comparison


def _measure(
    experiment: "Experiment", output_dir: Path, comparison: "Comparison", console: Console
) -> "list[MethodRun]":
    """Measure each method along its training, with a progress bar for all."""
    from prefopt.compare.tasks import read_state

    runs = []
    with _progress(console) as progress:
        bar = progress.add_task("measure along training", total=len(experiment.methods))
        for method, run in zip(experiment.methods, comparison.runs[1:], strict=True):
            folder = output_dir / "runs" / run.name
            seconds = read_state(folder).seconds["train"]
            with _log_to(output_dir):
                runs.append(experiment.measure(method, folder / "model", seconds))
            progress.advance(bar)
    return runs


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: for matrices this small, more threads are slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _log_to(folder: Path) -> Iterator[None]:
    """Write what libraries print on stderr to ``log.txt`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stderr(log):
        yield


def _print_results(console: Console, experiment: "Experiment", runs: "Sequence[MethodRun]") -> None:
    table = Table(
        "method",
        title="\nThe same start, trained with each method",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    headings = ("held-out\naccuracy, %", "reward\nbefore", "reward\nafter")
    for heading in (*headings, "KL,\nnats", "gram-\nmatical, %", "time,\ns"):
        table.add_column(heading, justify="right")
    for run in runs:
        first, last = run.path[0], run.path[-1]
        table.add_row(
            f"[bold]{run.name}[/]",
            _with_spread(last.accuracy, scale=100, digits=1),
            f"{first.reward.value:.2f}",
            f"[bold]{_with_spread(last.reward)}[/]",
            _with_spread(last.kl),
            f"{100 * last.grammatical:.0f}",
            f"{run.seconds:.1f}",
        )
    console.print(table)
    _print_legend(console, runs[0].path[0], experiment.evaluator.best_accuracy)
    _print_samples(console, experiment, runs)


def _print_legend(console: Console, first: "Measurement", best_accuracy: float) -> None:
    console.print(
        "[dim]accuracy: share of held-out pairs whose chosen completion has the higher implicit "
        f"reward; {100 * best_accuracy:.1f}% for the true reward itself, as "
        "preferences are noisy\n"
        "reward: true reward of the model's samples, in points; "
        f"KL: distance from the start; {100 * first.grammatical:.0f}% of the start is grammatical\n"
        "±: 95% interval[/]"
    )


def _print_samples(console: Console, experiment: "Experiment", runs: "Sequence[MethodRun]") -> None:
    start = experiment.evaluator.sample(experiment.start)[0]
    examples = Table(
        title=f"\n“{start['prompt']}”",
        title_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    examples.add_column()
    examples.add_column(justify="right")
    examples.add_column()
    for name, row in [("before", start), *((run.name, run.samples[0]) for run in runs)]:
        examples.add_row(f"[bold]{name}[/]", f"{row['reward']:+.2f}", row["completion"].strip())
    console.print(examples)


def _with_spread(estimate: Any, *, scale: float = 1, digits: int = 2) -> str:
    spread = scale * (estimate.high - estimate.low) / 2
    return f"{scale * estimate.value:.{digits}f} ±{spread:.{digits}f}"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
