"""All measured numbers as one CSV file, one number a row."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from prefopt.compare.report.names import with_all_methods
from prefopt.compare.results import Comparison, MethodResult
from prefopt.evaluation import Estimate

__all__ = ["COLUMNS", "write_csv"]

COLUMNS = (
    "method",
    "loss",
    "options",
    "is_baseline",
    "metric",
    "against",
    "temperature",
    "seed",
    "value",
    "low",
    "high",
    "size",
)
_Row = dict[str, object]


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write the metrics of each method, pooled and by seed, its win rates, and data baselines.

    A row without a seed is over all seeds; a row with one has no interval.

    Args:
        comparison: What was found.
        path: The file, replaced if it exists.
    """
    comparison = with_all_methods(comparison)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for method in comparison.methods:
            writer.writerows(_method_rows(comparison, method))
        for name, estimate in comparison.data_baselines.items():
            own: _Row = {"method": name, "is_baseline": True, "metric": "accuracy"}
            writer.writerow(own | _numbers(estimate))


def _method_rows(comparison: Comparison, method: MethodResult) -> Iterable[_Row]:
    own: _Row = {
        "method": method.name,
        "loss": method.loss,
        "options": json.dumps(method.options, default=str) if method.options else "",
        "is_baseline": method.is_baseline,
    }
    for metric, estimate in method.metrics.items():
        yield own | {"metric": metric} | _numbers(estimate)
    for metric, values in method.by_seed.items():
        for seed, value in zip(_seeds(comparison, method, len(values)), values, strict=True):
            yield own | {"metric": metric, "seed": seed, "value": value}
    for it in comparison.win_rates:
        if it.method == method.name:
            judged: _Row = {"against": it.against, "temperature": it.temperature}
            yield own | judged | {"metric": "win_rate"} | _numbers(it.rate)
            if it.length_controlled is not None:
                equal = {"metric": "length_controlled_win_rate"}
                yield own | judged | equal | _numbers(it.length_controlled)


def _seeds(comparison: Comparison, method: MethodResult, count: int) -> list[object]:
    """Return the seeds of the runs that have numbers; their places where runs do not fit them."""
    done = [run.seed for run in comparison.runs if (run.method, run.state) == (method.name, "done")]
    return list(done) if len(done) == count else [f"#{place + 1}" for place in range(count)]


def _numbers(estimate: Estimate) -> _Row:
    return dict(zip(("value", "low", "high", "size"), estimate, strict=True))
