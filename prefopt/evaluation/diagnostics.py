"""What goes wrong in a trained policy: from its logs, its held-out pairs and its samples.

The rules and their limits are those that training warns by; see ``prefopt.training.diagnosis``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.evaluation.intervals import Estimate, normal_quantile
from prefopt.objective.pair_statistics import LEAST_WEIGHT
from prefopt.training.diagnosis import (
    DIAGNOSTICS,
    Diagnostic,
    PairSummary,
    Point,
    diagnostics_of_pairs,
    over_optimisation,
    sampled_drift,
    worst,
)
from prefopt.training.history import diagnostics_of_history
from prefopt.training.history import training_pairs as count_training_pairs

__all__ = ["DIAGNOSTICS", "Diagnostic", "PairSummary", "diagnose", "summary_of_pairs"]

_SATURATED = DIAGNOSTICS.index("saturated pairs")
_DRIFT = DIAGNOSTICS.index("KL drift")
_OPTIMISED = DIAGNOSTICS.index("over-optimisation")


def diagnose(
    history: Sequence[Mapping[str, float]],
    pairs: Sequence[Mapping[str, Any]] | None = None,
    *,
    measured: Mapping[str, Estimate] | None = None,
    start: Mapping[str, Estimate] | None = None,
    training_pairs: int | None = None,
) -> list[Diagnostic]:
    """Return all diagnostics of a run, in the order of ``DIAGNOSTICS``.

    Held-out pairs say more than the last logs of training, and take their place, but for saturated
    pairs: those are pairs that training can learn nothing from any more.

    Args:
        history: What was logged, as in ``trainer.state.log_history``; with ``diagnostics=True``,
            else what needs it is not measured.
        pairs: A row for each held-out pair, with the fields of ``summary_of_pairs``; None for none.
        measured: What samples of the policy gave: ``kl`` in nats per completion, ``reward``.
        start: The same of the start of training.
        training_pairs: How many there are; None to take it from the history.

    Raises:
        ValueError: If a row of pairs lacks a field or has a number that is not finite.
    """
    found = diagnostics_of_history(history)
    if pairs:
        held_out = diagnostics_of_pairs(summary_of_pairs(pairs))
        for place, one in enumerate(held_out):
            if one.value is not None and (place != _SATURATED or not history):
                found[place] = one
    measured, start = measured or {}, start or {}
    count = training_pairs or count_training_pairs(history)
    if "kl" in measured and count:
        found[_DRIFT] = sampled_drift(measured["kl"].value, measured["kl"].low, count)
    if "reward" in measured and "reward" in start:
        fallen = _fallen(start["reward"], measured["reward"], history)
        found[_OPTIMISED] = worst([found[_OPTIMISED], fallen])
    return found


def summary_of_pairs(rows: Sequence[Mapping[str, Any]]) -> PairSummary:
    """Return what diagnostics need to know of a table of pairs.

    Args:
        rows: Each with ``chosen_reward`` and ``rejected_reward``, ``chosen_tokens`` and
            ``rejected_tokens``, and where there is a reference (else None or missing)
            ``chosen_logps``, ``rejected_logps``, ``ref_chosen_logps`` and ``ref_rejected_logps``.
            Pairs with one ``row`` (and ``dataset``, if any) are of one ranking, and count once
            where errors are computed.

    Raises:
        ValueError: If a row lacks a field or has a number that is not finite.
    """
    margins = _column(rows, "chosen_reward") - _column(rows, "rejected_reward")
    chosen_tokens = _column(rows, "chosen_tokens")
    gaps = chosen_tokens - _column(rows, "rejected_tokens")
    labels = torch.ones_like(margins)
    # Pairs of one ranking are no independent observations.
    independent = len({(row.get("dataset"), row.get("row", n)) for n, row in enumerate(rows)})
    return PairSummary(
        f"{len(rows)} held-out pairs",
        independent,
        independent,
        **_of_reference(rows),
        chosen_tokens=chosen_tokens.mean().item(),
        longer_chosen=(0.5 + 0.5 * gaps.sign()).mean().item(),
        data_length_correlation=_through_origin(labels, gaps),
        reward_length_correlation=_through_origin(margins, gaps),
        reward_label_correlation=_through_origin(margins, labels),
        saturated_pairs=((-margins).sigmoid() < LEAST_WEIGHT).double().mean().item(),
    )


def _of_reference(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if any(row.get("ref_chosen_logps") is None for row in rows):
        return {}
    chosen, rejected = (
        _column(rows, f"{side}_logps") - _column(rows, f"ref_{side}_logps")
        for side in ("chosen", "rejected")
    )
    return {
        "chosen_log_ratio": chosen.mean().item(),
        "chosen_log_ratio_std": chosen.std().item() if len(rows) > 1 else 0.0,
        "kept_mass": torch.cat([chosen, rejected]).exp().clamp(max=1).mean().item(),
    }


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """Return a number of each row; (B,), float64."""
    if not rows:
        raise ValueError("there are no pairs")
    missing = [number for number, row in enumerate(rows) if row.get(name) is None]
    if missing:
        raise ValueError(f"pair {missing[0]} has no {name!r}")
    column = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
    if not bool(column.isfinite().all()):
        bad = int((~column.isfinite()).nonzero()[0])
        raise ValueError(f"{name!r} of pair {bad} is {column[bad].item()}")
    return column


def _through_origin(first: Tensor, second: Tensor) -> float | None:
    """Return the correlation of two sides of pairs whose order says nothing; None if one is 0."""
    scale = (first.square().sum() * second.square().sum()).sqrt().item()
    return (first @ second).item() / scale if scale else None


def _fallen(start: Estimate, end: Estimate, history: Sequence[Mapping[str, float]]) -> Diagnostic:
    """Return whether the reward of samples is below that of the start."""
    margins = [entry["rewards/margins"] for entry in history if "rewards/margins" in entry]
    step = max((int(entry.get("step", 0)) for entry in history), default=0)
    points = [Point(0, 0.0), *([Point(step, margins[-1])] if margins else [])]
    reward = [Point(0, start.value, _error(start)), Point(step, end.value, _error(end))]
    return over_optimisation(reward, points, "reward of samples")


def _error(estimate: Estimate) -> float:
    """Return the standard error behind an interval of 95%."""
    return (estimate.high - estimate.low) / (2 * normal_quantile(0.95))
