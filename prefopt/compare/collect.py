"""From the folders of the runs to what they show: the numbers of each method, tests, curves."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from prefopt.compare.baselines import KINDS
from prefopt.compare.methods import Method
from prefopt.compare.plan import START, Run
from prefopt.compare.results import (
    Curve,
    Diagnosis,
    MethodResult,
    PairedTest,
    RunRecord,
    Sample,
    WinRate,
)
from prefopt.compare.split import row_dicts
from prefopt.compare.tasks import state_of
from prefopt.data import read_example
from prefopt.evaluation import Estimate
from prefopt.evaluation.diagnostics import diagnose
from prefopt.evaluation.prompts import prompt_text
from prefopt.evaluation.statistics import correct_pairs, holm, paired_difference, paired_test
from prefopt.training.diagnosis import worst
from prefopt.training.throughput import is_of_machine

__all__ = [
    "data_baselines",
    "method_results",
    "paired_tests",
    "pooled",
    "run_curves",
    "run_diagnoses",
    "run_records",
    "run_samples",
    "run_win_rates",
]

Z = 1.959964  # of a 95% interval
# Random patterns of signs behind a p-value: it is at least one in so many, and Holm's procedure
# multiplies it by the number of tests.
MOST_FLIPS, FLIPS_TIMES_ROWS = 100_000, 5e7
SHARES = (
    *("accuracy", "log_ratio_accuracy", "balanced_accuracy", "start_agreement"),
    *("truncated", "distinct_1", "distinct_2"),
)
RULES = ("longer", "shorter", "start")  # of `data_baselines`, those that order pairs
# Logged numbers that are no curves of learning, nor of the machine: counts, and what diagnoses are
# made of.
_NO_CURVES = re.compile(
    r"step$|epoch$|num_tokens|total_flos|"
    r"diagnostics/(?!chosen_log_ratio$|kept_mass|reward_length|saturated)|"
    # Of TRL: details, and what has the name of something else (kl: of a token; reward: less KL).
    r"clip_ratio|clipped_ratio|completions/m(in|ax)_|terminated|step_time|zero_std|_std$|/std$|"
    r"^kl$|^reward$|(min|max)_reward$"
)
SAMPLES = 50  # prompts whose answers are shown side by side
ALIKE = 2  # answers of a method to a prompt at a temperature that are shown


def run_records(runs: Sequence[Run]) -> tuple[RunRecord, ...]:
    """Return what became of each run."""
    records = []
    for run in runs:
        state = state_of(run.task)
        training = run.task.stages[0]
        records.append(
            RunRecord(
                name=run.task.name,
                method=run.method.name,
                seed=run.seed,
                state=state.state,
                command=f"python -m {' '.join(training.command)}",
                seconds=sum(state.seconds.values()) or None,
                tokens=_tokens(run) if state.has(training) else None,
                error=state.error,
            )
        )
    return tuple(records)


def method_results(runs: Sequence[Run]) -> tuple[MethodResult, ...]:
    """Return the numbers of each method over its seeds; methods that have none are left out."""
    results = []
    for method, its in _by_method(runs):
        found = [evaluation_of(run)["metrics"] for run in its]
        names = [name for name in found[0] if all(name in one for one in found)]
        by_seed = {name: [Estimate(*one[name]) for one in found] for name in names}
        results.append(
            MethodResult(
                name=method.name,
                loss=method.loss,
                options={k: v for k, v in method.options.items() if k != "loss_type"},
                is_baseline=method.kind != "loss",
                metrics={name: pooled(its, name in SHARES) for name, its in by_seed.items()},
                by_seed={
                    name: tuple(one.value for one in values) for name, values in by_seed.items()
                },
            )
        )
    return tuple(results)


def pooled(seeds: Sequence[Estimate], is_share: bool = False) -> Estimate:
    """Return the mean over seeds, with an interval for rows and for seeds.

    All seeds are measured on the same rows, so their mean is as uncertain as one of them for the
    choice of rows, and the choice of seeds comes on top: the variance is the mean of those of the
    rows, plus that between seeds divided by their number. With two or three seeds the latter is
    itself a rough guess.

    Args:
        seeds: The same number for each seed, with its 95% interval.
        is_share: Whether it lies between 0 and 1, and so does the interval.

    Examples:
        >>> one = Estimate(0.70, 0.66, 0.74, 500)
        >>> pooled([one]) == one
        True
        >>> both = pooled([one, Estimate(0.80, 0.76, 0.84, 500)])
        >>> [round(number, 4) for number in both]
        [0.75, 0.6442, 0.8558, 500]
    """
    if len(seeds) == 1:
        return seeds[0]
    values = torch.tensor([one.value for one in seeds], dtype=torch.float64)
    mean = values.mean().item()
    between = Z * Z * values.var().item() / len(seeds)
    below = sum((one.value - one.low) ** 2 for one in seeds) / len(seeds)
    above = sum((one.high - one.value) ** 2 for one in seeds) / len(seeds)
    low, high = mean - math.sqrt(below + between), mean + math.sqrt(above + between)
    if is_share:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(mean, low, high, seeds[0].size)


def paired_tests(runs: Sequence[Run], metric: str = "accuracy") -> tuple[PairedTest, ...]:
    """Return a test of every two methods on the same held-out pairs.

    A row's number is the mean over seeds of whether its pair is ordered rightly. The p-value is the
    larger of two: that of the paired test on rows (McNemar's, or sign flips), which takes the
    trained models as they are, and that of a z-test whose variance has the spread between seeds,
    too. They are corrected for the number of tests by Holm's procedure.

    Args:
        runs: Those of the matrix; the start, what is not done and what orders no pairs (the best of
            N answers) are left out.
        metric: What the pairs are ordered by: ``accuracy`` (the reward of the loss).
    """
    rows = {
        method.name: [_correct(run) for run in its]
        for method, its in _by_method(runs)
        if method != START and all(map(_has_pairs, its))
    }
    tests = []
    for first, second in combinations(rows, 2):
        one, other = _on_same_pairs(rows[first], rows[second])
        tests.append((first, second, *_compare(one, other)))
    adjusted = holm([p for *_, p in tests])
    return tuple(
        PairedTest(first, second, metric, difference, p, corrected)
        for (first, second, difference, p), corrected in zip(tests, adjusted, strict=True)
    )


def _compare(first: Tensor, second: Tensor) -> tuple[Estimate, float]:
    """Return difference and p-value of two methods; each (S, B), seeds and rows."""
    one, other = first.mean(0), second.mean(0)
    difference = paired_difference(one, other)
    spread = _seed_variance(first) + _seed_variance(second)
    p = paired_test(one, other, resamples=min(MOST_FLIPS, round(FLIPS_TIMES_ROWS / len(one))))
    if spread:
        extra = Z * Z * spread
        value, low, high, size = difference
        difference = Estimate(
            value,
            value - math.sqrt((value - low) ** 2 + extra),
            value + math.sqrt((high - value) ** 2 + extra),
            size,
        )
        error = math.sqrt((one - other).var().item() / len(one) + spread)
        p = max(p, math.erfc(abs(value) / error / math.sqrt(2)))
    return difference, p


def _seed_variance(correct: Tensor) -> float:
    """Return the variance of a mean over seeds, as the seeds show it; 0 for one seed."""
    seeds = len(correct)
    return correct.mean(1).var().item() / seeds if seeds > 1 else 0.0


def data_baselines(runs: Sequence[Run]) -> dict[str, Estimate]:
    """Return what rules that know no method reach on the held-out pairs."""
    for run in runs:
        if is_measured(run):
            found = evaluation_of(run).get("data_baselines", {})
            return {name: Estimate(*found[name]) for name in RULES if name in found}
    return {}


def run_curves(runs: Sequence[Run]) -> tuple[Curve, ...]:
    """Return what was logged along the training of each run."""
    curves = []
    for run in runs:
        points: dict[str, list[tuple[int, float]]] = {}
        for entry in log_history(run):
            for name, value in entry.items():
                if isinstance(value, int | float) and _is_curve(name):
                    points.setdefault(name, []).append((entry["step"], float(value)))
        for name, its in points.items():
            if len(its) > 1:
                steps, values = zip(*its, strict=True)
                curves.append(Curve(run.method.name, run.seed, name, steps, values))
    return tuple(curves)


def _is_curve(name: str) -> bool:
    return not (is_of_machine(name) or _NO_CURVES.search(name))


def run_win_rates(runs: Sequence[Run]) -> tuple[WinRate, ...]:
    """Return the win rates of each method, those of its seeds as one."""
    found: dict[tuple[str, str, float], list[WinRate]] = {}
    for method, its in _by_method(runs):
        for run in its:
            for fields in evaluation_of(run).get("win_rates", []):
                rate = _win_rate(method, fields)
                found.setdefault((rate.method, rate.against, rate.temperature), []).append(rate)
    return tuple(
        WinRate(*key, pooled([one.rate for one in rates], is_share=True), _controlled(rates))
        for key, rates in found.items()
    )


def run_samples(
    runs: Sequence[Run], held_out: Dataset | None = None, most: int = SAMPLES
) -> tuple[Sample, ...]:
    """Return answers to the same prompts side by side, of the first seed of each method.

    Args:
        runs: Those of the matrix.
        held_out: The rows, for the answers of the data; None leaves these out.
        most: Prompts.
    """
    samples: list[Sample] = []
    rows_of: dict[str, int] = {}  # the row of each prompt that is shown
    known = {name for name in Sample.__dataclass_fields__ if name != "method"}
    for method, its in _by_method(runs):
        path = its[0].task.folder / its[0].task.stages[-1].output / "samples.jsonl"
        seen = Counter[tuple[str, Any]]()
        for row in row_dicts(path) if path.is_file() else []:
            if row.get("method"):  # an answer of the data, which is added once, below
                continue
            if len(rows_of) < most:
                rows_of.setdefault(row["prompt"], row["row"])
            seen[row["prompt"], row.get("temperature")] += 1
            if row["prompt"] not in rows_of or seen[row["prompt"], row.get("temperature")] > ALIKE:
                continue
            fields = {name: value for name, value in row.items() if name in known}
            samples.append(Sample(method=method.name, **fields))
    if held_out is not None:
        samples += [_of_data(prompt, held_out[row], row) for prompt, row in rows_of.items()]
    return tuple(samples)


def run_diagnoses(runs: Sequence[Run]) -> tuple[Diagnosis, ...]:
    """Return what each loss should be looked at for: of its seeds, the one that is worst.

    What helps is said of losses, so RL and reward models are left out.
    """
    measured = {method.name: its for method, its in _by_method(runs)}
    start = _metrics(measured[START.name][0]) if START.name in measured else None
    found = []
    for name, its in measured.items():
        if KINDS[its[0].method.kind].is_special:
            continue
        of_seeds = [
            diagnose(log_history(run), _pairs(run), measured=_metrics(run), start=start)
            for run in its
        ]
        for alike in zip(*of_seeds, strict=True):
            one = worst(alike)
            found.append(Diagnosis(name, one.name, one.fires, one.text))
    return tuple(found)


# One run ------------------------------------------------------------------------------------------


def is_measured(run: Run) -> bool:
    """Whether a run's numbers are there."""
    return state_of(run.task).has(run.task.stages[-1])


def evaluation_of(run: Run) -> dict[str, Any]:
    """Return what ``prefopt eval`` found of a run."""
    path = run.task.folder / run.task.stages[-1].output / "evaluation.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def log_history(run: Run) -> list[dict[str, Any]]:
    """Return what training logged; nothing if it did not end, or there was none."""
    path = run.task.folder / "model" / "trainer_state.json"
    if not path.is_file():
        return []
    history: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    return history


def _tokens(run: Run) -> int | None:
    """Return the tokens that the loss looked at, as training logged them last."""
    seen = [entry["num_tokens"] for entry in log_history(run) if "num_tokens" in entry]
    return round(seen[-1] * run.budget.share) if seen and run.budget else None


def _of_data(prompt: str, row: Mapping[str, Any], number: int) -> Sample:
    """Return the answer that the data prefer."""
    answer = read_example(row, number).completions[0]
    return Sample(prompt, "chosen", answer if isinstance(answer, str) else prompt_text(answer))


def _metrics(run: Run) -> dict[str, Estimate]:
    return {name: Estimate(*one) for name, one in evaluation_of(run)["metrics"].items()}


def _pairs_file(run: Run) -> Path:
    return run.task.folder / run.task.stages[-1].output / "pairs.jsonl"


def _has_pairs(run: Run) -> bool:
    return _pairs_file(run).is_file()


def _pairs(run: Run) -> list[dict[str, Any]]:
    """Return the held-out pairs with their rewards; none of what orders none, as best-of-N."""
    return row_dicts(_pairs_file(run)) if _has_pairs(run) else []


def _correct(run: Run) -> dict[tuple[int, int], float]:
    """Return whether each held-out pair is ordered rightly, by its row and its place there."""
    rows = _pairs(run)
    rewards = torch.tensor(
        [[row["chosen_reward"], row["rejected_reward"]] for row in rows], dtype=torch.float64
    )
    seen = Counter[int]()
    found = {}
    for row, right in zip(rows, correct_pairs(rewards[:, 0], rewards[:, 1]).tolist(), strict=True):
        found[row["row"], seen[row["row"]]] = right
        seen[row["row"]] += 1
    return found


def _on_same_pairs(
    first: Sequence[Mapping[tuple[int, int], float]],
    second: Sequence[Mapping[tuple[int, int], float]],
) -> tuple[Tensor, Tensor]:
    """Return what two methods order rightly of the pairs that both read; each (S, B)."""
    both = sorted(set.intersection(*map(set, (*first, *second))))
    one, other = (
        torch.tensor([[seed[pair] for pair in both] for seed in its], dtype=torch.float64)
        for its in (first, second)
    )
    return one, other


def _by_method(runs: Iterable[Run]) -> list[tuple[Method, list[Run]]]:
    """Return the methods with their measured runs; those without any are left out."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if is_measured(run):
            found.setdefault(run.method.name, []).append(run)
    return [(its[0].method, its) for its in found.values()]


def _win_rate(method: Method, fields: Mapping[str, Any]) -> WinRate:
    controlled = fields.get("length_controlled")
    return WinRate(
        method.name,
        fields["against"],
        fields["temperature"],
        Estimate(*fields["rate"]),
        None if controlled is None else Estimate(*controlled),
    )


def _controlled(rates: Sequence[WinRate]) -> Estimate | None:
    found = [one.length_controlled for one in rates if one.length_controlled is not None]
    return pooled(found, is_share=True) if len(found) == len(rates) else None
