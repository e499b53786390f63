"""How a policy orders held-out pairs, compared with length alone and the start alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.evaluation.intervals import Estimate, mean_interval, preference_accuracy
from prefopt.evaluation.rewards import NoRewardsError, PairLogps, PairRewards, implicit_rewards
from prefopt.evaluation.statistics import (
    agreement,
    cluster_interval,
    correct_pairs,
    correlation,
    length_balanced,
)
from prefopt.objective import Objective, parse_objective

__all__ = ["PairEvaluation", "evaluate_pairs", "log_ratio_objective", "rewards_of_pairs"]


@dataclass(frozen=True)
class PairEvaluation:
    """How a policy orders P pairs.

    Attributes:
        metrics: By name: ``accuracy`` of the implicit reward (ties as one half),
            ``log_ratio_accuracy``, ``balanced_accuracy`` (on the length-balanced subset),
            ``margin``, ``chosen_log_ratio`` and ``rejected_log_ratio`` (nats),
            ``margin_length_correlation`` (Spearman's, of the reward's margin with the length of the
            chosen minus that of the rejected completion), ``start_agreement``.
        data_baselines: Accuracy of choosing the ``longer`` or the ``shorter`` completion, and the
            one that the ``start`` finds likelier.
        rewards: Implicit rewards of the pairs.
        notes: What could not be measured, and why.
    """

    metrics: dict[str, Estimate]
    data_baselines: dict[str, Estimate]
    rewards: PairRewards
    notes: tuple[str, ...] = ()


def log_ratio_objective() -> Objective:
    """Return an objective whose implicit reward is the log-ratio itself, in nats."""
    return parse_objective("dpo", options={"beta": 1.0})


def evaluate_pairs(
    policy: PairLogps,
    reference: PairLogps | None = None,
    *,
    objective: Objective | None = None,
    rows: Tensor | None = None,
    confidence: float = 0.95,
) -> PairEvaluation:
    """Measure how a policy orders pairs.

    Args:
        policy: Its log-probs of the pairs.
        reference: Those of the reference, the start; None leaves out what needs it.
        objective: Defines the implicit reward; None for the log-ratio in nats, or without a
            reference the log-prob. The same holds for a loss that defines no reward on pairs, which
            is noted.
        rows: The row of each pair; (P,). Pairs of one ranking share it, and intervals are then
            those of whole rows. None for a row each.
        confidence: Coverage of the intervals, between 0 and 1.

    Raises:
        ValueError: If there are fewer than two rows, or the loss needs a reference or log-probs of
            tokens and there are none.
    """
    rows = torch.arange(len(policy.chosen)) if rows is None else rows
    if len(set(rows.tolist())) < 2:
        raise ValueError(
            f"an evaluation needs pairs of at least 2 rows, got {len(set(rows.tolist()))}"
        )
    notes: list[str] = []
    rewards = rewards_of_pairs(objective, policy, reference, notes)
    of = _Estimates(rows, confidence)
    lengths = (policy.chosen_lengths, policy.rejected_lengths)
    metrics = {"accuracy": of.accuracy(*rewards)}
    baselines = {"longer": of.accuracy(*lengths), "shorter": of.accuracy(*lengths[::-1])}
    balanced = length_balanced(*lengths)
    if len(set(rows[balanced].tolist())) > 1:
        its = _Estimates(rows[balanced], confidence)
        metrics["balanced_accuracy"] = its.accuracy(*(side[balanced] for side in rewards))
    else:
        notes.append("balanced_accuracy: no subset of the pairs is balanced in length")
    margins = rewards.chosen - rewards.rejected
    _try_correlation(metrics, notes, margins, lengths[0] - lengths[1], confidence)
    if reference is None:
        notes.append("log-ratios, margin, start_agreement: these need a reference")
        return PairEvaluation(metrics, baselines, rewards, tuple(notes))
    baselines["start"] = of.accuracy(reference.chosen, reference.rejected)
    metrics |= _against_start(of, policy, reference)
    start_margins = reference.chosen - reference.rejected
    same = 0.5 + 0.5 * torch.sign(margins) * torch.sign(start_margins)
    metrics["start_agreement"] = of.share(
        same, lambda: agreement(margins, start_margins, confidence=confidence)
    )
    return PairEvaluation(metrics, baselines, rewards, tuple(notes))


def rewards_of_pairs(
    objective: Objective | None,
    policy: PairLogps,
    reference: PairLogps | None,
    notes: list[str] | None = None,
) -> PairRewards:
    """Return the implicit rewards of pairs.

    Args:
        objective: Defines them; None for the log-ratio, or without a reference the log-prob. The
            same holds for a loss that defines no reward on pairs.
        policy: The policy's log-probs.
        reference: Those of the reference; None for none.
        notes: Learns of a loss that defines none.

    Raises:
        ValueError: If the loss needs a reference or log-probs of tokens and there are none.
    """
    if objective is not None:
        try:
            return implicit_rewards(objective, policy, reference)
        except NoRewardsError as error:
            plain = "log-probs" if reference is None else "log-ratios"
            if notes is not None:
                notes.append(f"accuracy is that of {plain}: {error}")
    if reference is None:
        return PairRewards(policy.chosen, policy.rejected)
    return implicit_rewards(log_ratio_objective(), policy, reference)


def _against_start(
    of: "_Estimates", policy: PairLogps, reference: PairLogps
) -> dict[str, Estimate]:
    """Return what log-ratios say, which is comparable whatever the loss was."""
    chosen = policy.chosen - reference.chosen
    rejected = policy.rejected - reference.rejected
    return {
        "log_ratio_accuracy": of.accuracy(chosen, rejected),
        "margin": of.mean(chosen - rejected),
        "chosen_log_ratio": of.mean(chosen),
        "rejected_log_ratio": of.mean(rejected),
    }


def _try_correlation(
    metrics: dict[str, Estimate],
    notes: list[str],
    margins: Tensor,
    differences: Tensor,
    confidence: float,
) -> None:
    """Add the correlation of margins with length differences where there is one, else a note."""
    name = "margin_length_correlation"
    try:
        metrics[name] = correlation(margins, differences, confidence=confidence)
    except ValueError as error:
        notes.append(f"{name}: {error}")


@dataclass(frozen=True)
class _Estimates:
    """Estimates over pairs, whose intervals are those of rows.

    Attributes:
        rows: The row of each pair; (P,).
        confidence: Coverage of the intervals.
    """

    rows: Tensor
    confidence: float

    def share(self, values: Tensor, independent: Callable[[], Estimate]) -> Estimate:
        """Return a share: of independent pairs, or of rows that have several."""
        if len(set(self.rows.tolist())) == len(values):
            return independent()
        return cluster_interval(values, self.rows, confidence=self.confidence)

    def accuracy(self, chosen: Tensor, rejected: Tensor) -> Estimate:
        """Return the share of pairs whose chosen completion scores higher."""
        return self.share(
            correct_pairs(chosen, rejected),
            lambda: preference_accuracy(chosen, rejected, confidence=self.confidence),
        )

    def mean(self, values: Any) -> Estimate:
        """Return the mean over pairs."""
        return self.share(values, lambda: mean_interval(values, confidence=self.confidence))
