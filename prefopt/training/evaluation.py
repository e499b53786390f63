"""Evaluation that counts every example once, whatever the batches and processes."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from prefopt.batch import Batch, StepContext
from prefopt.objective.metrics import MetricSums, batch_rewards, with_margins
from prefopt.objective.preference_index import PreferenceIndex
from prefopt.training.step import Scored, StepStatistics

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


class Evaluation(NamedTuple):
    """What an evaluation found, over all processes.

    Attributes:
        metrics: Means over examples, by name; the loss among them.
        predictions: For ``compute_metrics``: rewards of chosen and of rejected completions, or of
            all with a label; None without it.
        labels: Those labels; None for pairs.
        examples: How many were evaluated.
    """

    metrics: dict[str, float]
    predictions: Any
    labels: Any
    examples: int


@dataclass(frozen=True)
class _Held:
    """What losses and metrics need of a scored batch: little, since all batches are held."""

    index: PreferenceIndex
    scored: Scored
    counts: Tensor


class Evaluator:
    """Evaluates batches.

    KTO's KL estimate, and losses in which each example depends on the others, are those of the
    whole set, so no loss is known before the last batch.

    Args:
        statistics: Computes losses and metrics of batches. Each of its processes evaluates a share.
    """

    def __init__(self, statistics: StepStatistics) -> None:
        self._statistics = statistics
        self._objective = statistics.objective
        self._processes = statistics.processes

    def evaluate(
        self,
        batches: Iterable[Batch],
        score: Callable[[Batch], Scored],
        compute_metrics: ComputeMetrics | None = None,
    ) -> Evaluation:
        """Return the means over all examples of some batches."""
        held, examples = self._scored(batches, score)
        kl = None
        if self._objective.needs_kl:
            sums = [one.scored.mismatched for one in held if one.scored.mismatched is not None]
            kl = self._statistics.kl_estimate(sums)
        batch_losses = self._statistics.batch_losses(
            [one.index for one in held], [one.scored for one in held]
        )
        sums_of_metrics = MetricSums()
        rewards = []
        for one, losses in zip(held, batch_losses, strict=True):
            context = StepContext(one.counts, one.counts, kl, batch_losses=losses)
            outputs = self._statistics.outputs(one.index, one.scored, context)
            for number, output in enumerate(outputs):
                sums_of_metrics.add(f"term/{number}", output.losses.sum(), one.counts[number])
            self._statistics.add_metrics(
                sums_of_metrics, one.index, outputs, one.scored.scores, one.counts
            )
            rewards.append(batch_rewards(self._objective, outputs, one.index))
        metrics = self._means(sums_of_metrics)
        metrics |= {name: float(estimate) for name, estimate in (kl or {}).items()}
        predictions, labels = None, None
        if compute_metrics is not None:
            predictions, labels = self._collected(rewards)
            metrics |= compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
        return Evaluation(metrics, predictions, labels, examples)

    @torch.no_grad()
    def _scored(
        self, batches: Iterable[Batch], score: Callable[[Batch], Scored]
    ) -> tuple[list[_Held], int]:
        """Return the scored batches of this process, and the examples of all."""
        held, examples = [], 0
        for batch in batches:
            scored = score(batch)
            scored = scored if self._objective.needs_tokens else scored.summed()
            held.append(_Held(batch.index, scored, self._statistics.counts(batch)))
            examples += len(batch.texts.examples)
        own = torch.tensor(examples, device=self._statistics.score.device)
        return held, int(self._processes.sum(own))

    def _means(self, sums: MetricSums) -> dict[str, float]:
        means = with_margins(sums.means(self._processes.sum))
        terms = self._objective.terms
        losses = [means.pop(f"term/{number}", math.nan) for number in range(len(terms))]
        means["loss"] = sum(term.weight * loss for term, loss in zip(terms, losses, strict=True))
        return means

    def _collected(self, rewards: Sequence[tuple[Tensor | None, ...]]) -> tuple[Any, Any]:
        """Return predictions and labels for ``compute_metrics``, from all processes."""
        chosen, rejected, unpaired, labels = (
            self._joined([batch[column] for batch in rewards]) for column in range(4)
        )
        if chosen is not None:
            return (chosen, rejected), None
        return unpaired, None if labels is None else labels.astype(bool)

    def _joined(self, parts: Sequence[Tensor | None]) -> Any:
        """Return one array of the parts of all processes; None if none has any."""
        own = [part.float().cpu().numpy() for part in parts if part is not None]
        local = np.concatenate(own) if own else None
        known = [part for part in self._processes.all(local) if part is not None]
        return np.concatenate(known) if known else None
