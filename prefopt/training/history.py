"""What the logs of a run say of it, by the rules of ``prefopt.training.diagnosis``."""

import math
from collections.abc import Mapping, Sequence

from prefopt.training.diagnosis import (
    Diagnostic,
    PairSummary,
    Point,
    diagnostics_of_pairs,
    likelihood_displacement,
    over_fitting,
    over_optimisation,
    worst,
)

History = Sequence[Mapping[str, float]]

# A window goes back until it has as many pairs.
WANTED_PAIRS = 200
# Logs that are compared where each has no error of its own.
LEAST_LOGS = 5
_LOG_RATIO = "diagnostics/chosen_log_ratio"
_PAIRS, _CHOSEN = "diagnostics/pairs", "diagnostics/chosen_count"


def diagnostics_of_history(history: History) -> list[Diagnostic]:
    """Return all of ``DIAGNOSTICS`` of what a run logged.

    Args:
        history: As in ``trainer.state.log_history``; with ``diagnostics=True``, else most are not
            measured.
    """
    of_pairs = diagnostics_of_pairs(summary_of_history(history))
    if of_pairs[0].value is None:
        of_pairs[0] = displacement_without_reference(history) or of_pairs[0]
    return [*of_pairs, *diagnostics_of_curves(history)]


def summary_of_history(history: History) -> PairSummary:
    """Return what the newest logs of training say of pairs.

    They are the last quarter of the logs, or as many as hold 200 pairs, but of one epoch at most,
    in which no pair comes twice.

    Args:
        history: What was logged, as in ``trainer.state.log_history``.
    """
    logged = [entry for entry in history if _count(entry)]
    window: list[Mapping[str, float]] = []
    counted = 0.0
    for entry in reversed(logged):
        enough = counted >= WANTED_PAIRS and len(window) >= len(logged) / 4
        if enough or (window and logged[-1].get("epoch", 0) - entry.get("epoch", 0) >= 1):
            break
        window.append(entry)
        counted += _count(entry)
    return _summary(window, _distinct(history, _PAIRS), _distinct(history, _CHOSEN))


def training_pairs(history: History) -> int:
    """Return how many different pairs were trained on, as far as the history says."""
    return _distinct(history, _PAIRS)


def _distinct(history: History, name: str) -> int:
    """Return how many were seen in an epoch, or in all where it is not over."""
    epochs = max((entry.get("epoch", 0.0) for entry in history), default=0.0)
    return round(sum(entry.get(name, 0.0) for entry in history) / max(1.0, epochs))


def _count(entry: Mapping[str, float]) -> float:
    """Return the pairs behind what was logged, or the chosen completions where there are none."""
    return entry.get(_PAIRS) or entry.get(_CHOSEN) or 0.0


def _summary(window: History, most_pairs: int, most_chosen: int) -> PairSummary:
    def mean(name: str, weight: str = _PAIRS) -> float | None:
        return _mean([(entry[name], entry.get(weight, 0)) for entry in window if name in entry])

    # Logs of more than an epoch count pairs twice, which makes them no surer.
    pairs = min(most_pairs, round(sum(entry.get(_PAIRS, 0) for entry in window)))
    chosen = min(most_chosen, round(sum(entry.get(_CHOSEN, 0) for entry in window)))
    kept, spread = "diagnostics/kept_mass", f"{_LOG_RATIO}_std"
    return PairSummary(
        f"the last {pairs} training pairs" if pairs else f"the last {chosen} training rows",
        pairs,
        chosen,
        chosen_log_ratio=mean(_LOG_RATIO, _CHOSEN),
        chosen_log_ratio_std=_spread(
            [(e[_CHOSEN], e[_LOG_RATIO], e[spread]) for e in window if spread in e]
        ),
        chosen_tokens=mean("lengths/chosen", _CHOSEN) or mean("lengths/chosen"),
        kept_mass=mean(kept, _CHOSEN),
        longer_chosen=mean("diagnostics/longer_chosen"),
        saturated_pairs=mean("diagnostics/saturated_pairs"),
        data_length_correlation=mean("diagnostics/data_length_correlation"),
        reward_label_correlation=mean("diagnostics/reward_label_correlation"),
        reward_length_correlation=mean("diagnostics/reward_length_correlation"),
    )


def _mean(values: Sequence[tuple[float, float]]) -> float | None:
    """Return the mean of values with weights; None where nothing has one."""
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else None


def _spread(parts: Sequence[tuple[float, float, float]]) -> float | None:
    """Return the standard deviation of all values of some parts: their counts, means and own."""
    count = sum(part[0] for part in parts)
    if not count:
        return None
    middle = sum(size * mean for size, mean, _ in parts) / count
    squares = sum((size - 1) * std**2 + size * (mean - middle) ** 2 for size, mean, std in parts)
    return math.sqrt(squares / max(1.0, count - 1))


def displacement_without_reference(history: History) -> Diagnostic | None:
    """Return whether chosen completions fall where no reference says what they were at the start.

    The first quarter of the logs is compared with the last; each log is one measurement.

    Args:
        history: What was logged.

    Returns:
        None where there are too few logs.
    """
    entries = [e for e in history if "logps/chosen" in e and "loss" in e]
    size = len(entries) // 4
    if size < LEAST_LOGS:
        return None
    early, late = (
        [entry["logps/chosen"] for entry in part] for part in (entries[:size], entries[-size:])
    )
    change = sum(late) / size - sum(early) / size
    error = math.sqrt((_variance(early) + _variance(late)) / size)
    tokens = sum(entry.get("lengths/chosen", 0.0) for entry in entries[-size:]) / size
    of = (f"the last {size} logs", f"the first {size}")
    return likelihood_displacement(change, error, tokens or None, *of)


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def diagnostics_of_curves(history: History) -> list[Diagnostic]:
    """Return over-optimisation and over-fitting, of the held-out set that is worst.

    Args:
        history: What was logged. Sets are known by their losses (``eval_loss``, or
            ``eval_<name>_loss``); a reward of samples is ``eval_reward`` beside
            ``eval_reward_standard_error``.
    """
    margins = _points(history, "rewards/margins")
    training = _points(history, "loss")
    prefixes = dict.fromkeys(
        key.removesuffix("loss")
        for entry in history
        for key in entry
        if key.startswith("eval_") and key.endswith("_loss")
    )
    fitted, optimised = [], []
    for prefix in prefixes:
        of_set = "held-out" if prefix == "eval_" else f"held-out ({prefix[5:-1]})"
        error = f"{prefix}diagnostics/loss_standard_error"
        losses = [point for point in _points(history, f"{prefix}loss", error) if point.error]
        fitted.append(over_fitting(losses, training, of_set))
        accuracies = _accuracies(history, prefix)
        optimised.append(over_optimisation(accuracies, margins, f"{of_set} accuracy"))
    rewards = _points(history, "eval_reward", "eval_reward_standard_error")
    optimised.append(
        over_optimisation([p for p in rewards if p.error], margins, "reward of samples")
    )
    return [worst(optimised), worst(fitted or [over_fitting([], training)])]


def _points(history: History, name: str, error: str | None = None) -> list[Point]:
    return [
        Point(int(entry["step"]), entry[name], entry.get(error, 0.0) if error else 0.0)
        for entry in history
        if name in entry and "step" in entry and math.isfinite(entry[name])
    ]


def _accuracies(history: History, prefix: str) -> list[Point]:
    """Return held-out accuracies with standard errors, by Agresti and Coull's count."""
    found = []
    for entry in history:
        pairs = entry.get(f"{prefix}diagnostics/pairs")
        share = entry.get(f"{prefix}diagnostics/pair_accuracy")
        if pairs and share is not None:
            near = (share * pairs + 2) / (pairs + 4)
            found.append(Point(int(entry["step"]), share, math.sqrt(near * (1 - near) / pairs)))
    return found
