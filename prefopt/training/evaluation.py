"""Evaluation that counts every example once, whatever the batches and processes."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from prefopt.batch import Batch, StepContext
from prefopt.data import DataError
from prefopt.objective.metrics import BatchRewards, MetricSums, batch_rewards
from prefopt.objective.objective import Objective
from prefopt.objective.pair_statistics import PAIR_STATISTICS
from prefopt.objective.preference_index import PreferenceIndex
from prefopt.training.step import Scored, StepStatistics

# What an evaluation finds of every run; where a loss defines no rewards, those are missing.
_SIDES = ("chosen", "rejected")
_METRICS = (
    "loss",
    *(f"rewards/{name}" for name in (*_SIDES, "margins", "accuracies")),
    *(f"{name}/{side}" for name in ("logps", "lengths") for side in _SIDES),
    "runtime",
    "samples_per_second",
    "steps_per_second",
)
_OF_TOKENS = ("entropy", "mean_token_accuracy", *(f"logits/{side}" for side in _SIDES))
_OF_KL = ("kl", "mean_kl")
_OF_START = tuple(f"log_ratios/{name}" for name in (*_SIDES, "margins", "accuracies"))

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


class Evaluation(NamedTuple):
    """What an evaluation found, over all processes.

    Attributes:
        metrics: Means over examples, by name; the loss among them.
        predictions: Rewards in the order of the rows: of chosen and of rejected completions, or of
            all with a label, or all three where there are rows of both kinds; None where they were
            not asked for, or no loss defines rewards.
        labels: Those labels; None for pairs.
        examples: How many were evaluated.
    """

    metrics: dict[str, float]
    predictions: Any
    labels: Any
    examples: int

    def output(self, prefix: str) -> EvalLoopOutput:
        """Return it as ``transformers.Trainer`` does, metrics named by a prefix.

        Raises:
            DataError: If no example was evaluated.
        """
        if not self.examples:
            raise DataError("no row is left: all were set aside", dataset=prefix)
        metrics = {
            name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": value
            for name, value in self.metrics.items()
        }
        return EvalLoopOutput(self.predictions, self.labels, metrics, self.examples)


@dataclass(frozen=True)
class _Held:
    """What losses and metrics need of a scored batch: little, since all batches are held."""

    index: PreferenceIndex
    scored: Scored
    counts: Tensor
    rows: Tensor  # the number of the row that each completion belongs to, over all processes; (N,)


def check_best_metric(
    args: Any, objective: Objective, eval_dataset: Any, compute_metrics: ComputeMetrics | None
) -> None:
    """Raise where the metric by which the best model is known is none that evaluations make.

    Args:
        args: Those of the run.
        objective: Its losses.
        eval_dataset: One, or a dictionary of such by name.
        compute_metrics: Makes others, whose names are not known yet; None for none.

    Raises:
        ValueError: Listing those that are nearest, or all.
    """
    wanted = args.metric_for_best_model
    if wanted is None or eval_dataset is None or args.eval_strategy == "no" or compute_metrics:
        return
    sets = eval_dataset if isinstance(eval_dataset, dict) else {}
    prefixes = [f"eval_{name}" for name in sets] or ["eval"]
    terms = [f"loss/{term.loss.name}" for term in objective.terms if len(objective.terms) > 1]
    names = [*_METRICS, *terms, *(_OF_KL if objective.needs_kl else ())]
    names += _OF_TOKENS if args.log_token_metrics else ()
    names += PAIR_STATISTICS if args.diagnostics else ()
    names += _OF_START if args.log_ratios else ()
    known = [f"{prefix}_{name}" for prefix in prefixes for name in names]
    name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"metric_for_best_model={wanted!r} is no metric of the evaluations of this run; "
            f"{hint or 'there are ' + ', '.join(known)[:300]}"
        )


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
        keep_predictions: bool = False,
    ) -> Evaluation:
        """Return the means over all examples of some batches.

        Args:
            batches: Those of this process, whose rows are every so many of the whole set.
            score: Scores one.
            compute_metrics: Computes further metrics of the predictions.
            keep_predictions: Whether predictions are returned without ``compute_metrics`` too.
        """
        held, examples = self._scored(batches, score)
        kl = None
        if self._objective.needs_kl:
            sums = [one.scored.mismatched for one in held if one.scored.mismatched is not None]
            kl = self._statistics.kl_estimate(sums)
        batch_losses = self._statistics.batch_losses(
            [one.index for one in held], [one.scored for one in held]
        )
        sums_of_metrics = MetricSums()
        rewards, rows = [], []
        for one, losses in zip(held, batch_losses, strict=True):
            context = StepContext(one.counts, one.counts, kl, batch_losses=losses)
            outputs = self._statistics.outputs(one.index, one.scored, context)
            for number, output in enumerate(outputs):
                sums_of_metrics.add(f"term/{number}", output.losses.sum(), one.counts[number])
            self._statistics.add_metrics(
                sums_of_metrics, one.index, outputs, one.scored, one.counts
            )
            rewards.append(batch_rewards(self._objective, outputs, one.index))
            rows.append(one.rows)
        metrics = self._means(sums_of_metrics)
        metrics |= {name: float(estimate) for name, estimate in (kl or {}).items()}
        predictions, labels = None, None
        if compute_metrics is not None or keep_predictions:
            predictions, labels = self._collected(rewards, rows)
        if compute_metrics is not None:
            given = compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
            if not isinstance(given, Mapping):
                raise TypeError(
                    f"compute_metrics must return a dictionary, got {type(given).__name__}"
                )
            metrics |= given
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
            rows = [
                (examples + row) * self._processes.count + self._processes.rank
                for row, example in enumerate(batch.texts.examples)
                for _ in example.completion_ids
            ]
            held.append(
                _Held(batch.index, scored, self._statistics.counts(batch), torch.tensor(rows))
            )
            examples += len(batch.texts.examples)
        own = torch.tensor(examples, device=self._statistics.score.device)
        return held, int(self._processes.sum(own))

    def _means(self, sums: MetricSums) -> dict[str, float]:
        means = self._statistics.means_of(sums)
        terms = self._objective.terms
        losses = [means.pop(f"term/{number}", math.nan) for number in range(len(terms))]
        means["loss"] = sum(term.weight * loss for term, loss in zip(terms, losses, strict=True))
        return means

    def _collected(
        self, rewards: Sequence[BatchRewards], rows: Sequence[Tensor]
    ) -> tuple[Any, Any]:
        """Return predictions and labels, from all processes, in the order of the rows."""
        of_pairs = [
            of_batch[batch.pairs.cpu()] if batch.pairs is not None else None
            for batch, of_batch in zip(rewards, rows, strict=True)
        ]
        of_unpaired = [
            of_batch[batch.completions.cpu()] if batch.completions is not None else None
            for batch, of_batch in zip(rewards, rows, strict=True)
        ]
        chosen = self._joined([batch.chosen for batch in rewards], of_pairs)
        rejected = self._joined([batch.rejected for batch in rewards], of_pairs)
        unpaired = self._joined([batch.unpaired for batch in rewards], of_unpaired)
        labels = self._joined([batch.labels for batch in rewards], of_unpaired)
        labels = None if labels is None else labels.astype(bool)
        if chosen is None:
            return unpaired, labels
        return (chosen, rejected) if unpaired is None else (chosen, rejected, unpaired), labels

    def _joined(self, parts: Sequence[Tensor | None], rows: Sequence[Tensor | None]) -> Any:
        """Return one array of the parts of all processes, ordered by rows; None if none has any."""
        own = [part.float().cpu().numpy() for part in parts if part is not None]
        numbers = [part.numpy() for part in rows if part is not None]
        local = (np.concatenate(own), np.concatenate(numbers)) if own else None
        known = [part for part in self._processes.all(local) if part is not None]
        if not known:
            return None
        values, order = (np.concatenate(column) for column in zip(*known, strict=True))
        return values[np.argsort(order, kind="stable")]
