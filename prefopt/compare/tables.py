"""What a comparison prints: its runs before, its numbers after."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from prefopt.compare.plan import Run
from prefopt.compare.report.rules import rule_title, rules_of
from prefopt.compare.results import Comparison, MethodResult
from prefopt.compare.tasks import state_of
from prefopt.evaluation import Estimate

__all__ = ["print_plan", "print_results"]

# Metric, heading, factor, digits.
_COLUMNS = (
    ("accuracy", "held-out\naccuracy, %", 100, 1),
    ("balanced_accuracy", "at equal\nlengths, %", 100, 1),
    ("margin", "margin,\nnats", 1, 2),
    ("reward", "reward", 1, 2),
    ("kl", "KL,\nnats", 1, 2),
    ("completion_tokens", "tokens", 1, 0),
)


def print_plan(console: Console, runs: Sequence[Run]) -> None:
    """Print the runs of a matrix and what they take, as far as that is known."""
    table = Table("run", "state", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("steps", "rows", "tokens"):
        table.add_column(heading, justify="right")
    for run in runs:
        budget = run.budget
        numbers = (
            ("", "", "")
            if budget is None
            else (f"{budget.steps:,}", f"{budget.rows:,}", f"{budget.tokens:,.0f}")
        )
        table.add_row(run.task.name, state_of(run.task).state, *numbers)
    console.print(table)
    trained = [run.budget for run in runs if run.budget is not None]
    console.print(
        f"{len(trained)} runs to train, {sum(one.steps for one in trained):,} steps, about "
        f"{sum(one.tokens for one in trained):,.0f} tokens; each is measured after it"
    )


def print_results(console: Console, comparison: Comparison) -> None:
    """Print the numbers of all methods, and the verdict."""
    columns = [one for one in _COLUMNS if any(one[0] in its.metrics for its in comparison.methods)]
    table = Table("method", box=SIMPLE_HEAD, pad_edge=False)
    for _, heading, _, _ in columns:
        table.add_column(heading, justify="right")
    for method in comparison.methods:
        cells = [_cell(method, name, factor, digits) for name, _, factor, digits in columns]
        table.add_row(f"[bold]{method.name}[/]", *cells)
    console.print(table)
    for name, share in rules_of("accuracy", comparison.data_baselines).items():
        console.print(f"[dim]accuracy of {rule_title(name)}: {100 * share.value:.1f}%[/]")
    for name, reward in rules_of("reward", comparison.data_baselines).items():
        console.print(f"[dim]reward of {rule_title(name)}: {reward.value:.2f}[/]")
    console.print("[dim]±: half of the 95% interval, over rows and seeds[/]")
    console.print(comparison.verdict, markup=False, style="bold")


def _cell(method: MethodResult, name: str, factor: float, digits: int) -> str:
    if name not in method.metrics:
        return ""
    return with_spread(method.metrics[name], factor, digits)


def with_spread(estimate: Estimate, factor: float = 1, digits: int = 2) -> str:
    """Return an estimate and half of its interval, as text.

    >>> with_spread(Estimate(0.71, 0.68, 0.74, 900), 100, 1)
    '71.0 ±3.0'
    """
    spread = factor * (estimate.high - estimate.low) / 2
    return f"{factor * estimate.value:.{digits}f} ±{spread:.{digits}f}"
