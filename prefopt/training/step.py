"""What losses must know of a whole optimiser step before its first backward pass.

A step is one set of examples, however it is cut into micro-batches, parts and processes: over what
each loss takes its mean, KTO's KL estimate, running means, and losses in which each example depends
on all others.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.batch import Batch, StepContext
from prefopt.engine import Scorer
from prefopt.engine.moe import LoadBalancingLoss, routed_tokens
from prefopt.engine.noise import Noise
from prefopt.engine.score import Scores
from prefopt.engine.token_statistics import TOKEN_METRICS
from prefopt.losses import LossOutput
from prefopt.losses.common import average_logps
from prefopt.objective import Objective
from prefopt.objective.batch_losses import BatchInputs, BatchLoss, compute_together
from prefopt.objective.inputs import (
    Completions,
    loss_inputs,
    term_counts,
    term_output,
    term_weights,
)
from prefopt.objective.metrics import (
    MetricSums,
    add_batch_metrics,
    add_log_ratios,
    add_token_metrics,
    with_margins,
)
from prefopt.objective.objective import Term
from prefopt.objective.pair_statistics import add_pair_statistics, pair_statistics
from prefopt.objective.preference_index import PreferenceIndex
from prefopt.objective.running_means import RunningMeans, running_sums
from prefopt.reference.processes import Processes
from prefopt.reference.references import References
from prefopt.training.throughput import StepClock

# What a checkpoint keeps of means over training.
RUNNING_FILE = "prefopt_running.json"


class Scored(NamedTuple):
    """A batch, scored.

    Attributes:
        scores: By the policy.
        ref_logps: By the reference; (N,), nats; None if no loss needs it.
        mismatched: ``mismatched_sums`` of the batch; (3,), None where they were not asked for.
        ref_per_token_logps: By the reference, of each scored token; (L,), nats.
    """

    scores: Scores
    ref_logps: Tensor | None = None
    mismatched: Tensor | None = None
    ref_per_token_logps: Tensor | None = None

    def summed(self) -> "Scored":
        """Return the same without what is as long as the texts."""
        return self._replace(scores=self.scores.summed(), ref_per_token_logps=None)

    def completions(self, scalars: Mapping[str, Tensor]) -> Completions:
        """Return what losses are given."""
        scores = self.scores
        return Completions(
            scores.logps,
            scores.lengths,
            self.ref_logps,
            scores.per_token_logps,
            self.ref_per_token_logps,
            scores.divergences,
            None if scores.statistics is None else scores.statistics.log_collisions,
            scalars=scalars,
        )


class BatchScorer:
    """Scores batches with policy and reference.

    Args:
        scorer: Of the policy.
        references: None if no loss needs the reference.
        objective: Says what of the scores is needed.
        load_balancing_loss: Added for a mixture of experts; None for none.
        token_metrics: Whether metrics of single tokens are logged too.
        context: Makes the context of forward passes, such as ``accelerator.autocast``.
        noise: Returns the noise of a batch's embeddings in training; None for none.
        clock: Times what the reference takes of a step; None for one of its own.

    Attributes:
        device: Of the policy.
    """

    def __init__(
        self,
        scorer: Scorer,
        references: References | None,
        objective: Objective,
        load_balancing_loss: LoadBalancingLoss | None = None,
        token_metrics: bool = False,
        context: Callable[[], Any] = nullcontext,
        noise: Callable[[Batch], Noise] | None = None,
        clock: StepClock | None = None,
    ) -> None:
        self._noise = noise
        self._clock = clock or StepClock()
        self._scorer = scorer
        self._references = references
        self._objective = objective
        self.load_balancing_loss = load_balancing_loss
        self.token_metrics = TOKEN_METRICS if token_metrics else ()
        self.device = next(scorer.model.parameters()).device
        self._context = context
        self._statistics = (
            *self.token_metrics,
            *(("log_collisions",) if objective.needs_collisions else ()),
        )

    def __call__(
        self,
        batch: Batch,
        wrapped: nn.Module | None = None,
        with_mismatched: bool = True,
        training: bool = False,
    ) -> Scored:
        """Return a batch scored, mismatched completions that are laid out alone on request.

        In training the policy sees noisy embeddings where that was asked for.
        """
        # The reference comes first, while no activations of the policy are held.
        reference = None
        if self._references is not None:
            divergences = self._objective.needs_divergences
            with self._clock.within("reference"):
                reference = self._references.logps(batch.texts, divergences)
        scores = self._scorer.score(
            batch.texts.tokens,
            wrapped,
            self._context,
            load_balancing_loss=self.load_balancing_loss,
            statistics=self._statistics,
            divergence_from=None if reference is None else reference.predictions,
            noise=self._noise(batch) if training and self._noise is not None else None,
        )
        if reference is None:
            return Scored(scores)
        mismatched = None
        if scores.continuation is not None:
            ref_logps = reference.continuation
            if ref_logps is None:
                ref_logps = self._mismatched_reference(batch)
            mismatched = mismatched_sums(scores.continuation, ref_logps)
        elif with_mismatched and batch.mismatched is not None:
            mismatched = self.mismatched(batch)
        return Scored(scores, reference.logps, mismatched, reference.per_token_logps)

    @torch.no_grad()
    def mismatched(self, batch: Batch) -> Tensor:
        """Return ``mismatched_sums`` of a batch whose mismatched completions are laid out alone."""
        assert batch.mismatched is not None  # the collator adds them where a loss needs them
        scores = self._scorer.score(batch.mismatched.tokens, context=self._context)
        return mismatched_sums(scores, self._mismatched_reference(batch))

    def _mismatched_reference(self, batch: Batch) -> Tensor:
        assert self._references is not None  # no loss takes a KL estimate without a reference
        assert batch.mismatched is not None
        with self._clock.within("reference"):
            return self._references.logps(batch.mismatched).logps


class StepStatistics:
    """Makes losses and metrics independent of how an optimiser step is cut.

    Args:
        objective: The losses.
        score: Scores batches.
        processes: Those that share the steps.
        progress: Returns the share of the optimiser steps that are done, from 0 to 1.
        of_pairs: Whether metrics have what diagnostics need to know of pairs.
        log_ratios: Whether they have log-ratios of policy and reference.

    Attributes:
        metrics: Of training, since they were last logged.
        watch: Told of each micro-batch of training, what was computed of it; None for nobody.
    """

    def __init__(
        self,
        objective: Objective,
        score: BatchScorer,
        processes: Processes,
        progress: Callable[[], float] = lambda: 0.0,
        of_pairs: bool = False,
        log_ratios: bool = False,
    ) -> None:
        self._of_pairs = of_pairs
        self._log_ratios = log_ratios
        self.metrics = MetricSums()
        self.objective = objective
        self.score = score
        self.processes = processes
        self._progress = progress
        self._running = RunningMeans(len(objective.terms))
        self.watch: Callable[[Batch, Scored, Sequence[LossOutput]], None] | None = None

    @property
    def terms(self) -> list[Term]:
        """The terms of the objective at this point of training."""
        progress = self._progress()
        return [term.at(progress) for term in self.objective.terms]

    # A step ---------------------------------------------------------------------------------------

    def contexts(self, batches: Sequence[Batch]) -> list[StepContext]:
        """Return what each micro-batch of a step must know of the others."""
        counts = [self.counts(batch) for batch in batches]
        denominators = self.processes.sum(torch.stack(counts).sum(0))
        kl = None
        if self.objective.needs_kl and not batches[0].continues:
            kl = self.kl_estimate([self.score.mismatched(batch) for batch in batches])
            self._log_kl(kl)
        betas = [term.beta for term in self.terms if term.options.beta_final is not None]
        if betas:
            self.metrics.add("beta", denominators.new_tensor(betas[0]), 1.0)
        contexts = [StepContext(count, denominators, kl) for count in counts]
        if self.objective.needs_step and (len(batches) > 1 or self.processes.count > 1):
            return self._look_ahead(batches, contexts)
        return contexts

    def contexts_alone(self, batches: Sequence[Batch]) -> list[StepContext]:
        """Return the contexts of batches that are a step of this process alone."""
        counts = [self.counts(batch) for batch in batches]
        return [StepContext(count, torch.stack(counts).sum(0)) for count in counts]

    def counts(self, batch: Batch) -> Tensor:
        """Return over what each loss of the objective takes its mean in a batch; (terms,).

        With a load-balancing loss the tokens that it is taken over come last; (terms + 1,).
        """
        tokens = batch.texts.tokens
        counts = [term_counts(term, batch.index, tokens.lengths) for term in self.objective.terms]
        if self.score.load_balancing_loss is not None:
            counts.append(routed_tokens(tokens))
        return torch.stack(counts).double()

    @torch.no_grad()
    def _look_ahead(
        self, batches: Sequence[Batch], contexts: Sequence[StepContext]
    ) -> list[StepContext]:
        """Score all micro-batches once without gradient, for losses that need all examples."""
        indices = [batch.index for batch in batches]
        scored = [self.score(batch, with_mismatched=False, training=True) for batch in batches]
        running = None
        if self.objective.needs_running_means:
            sums = [self._running_sums(*pair) for pair in zip(indices, scored, strict=True)]
            total = self.processes.sum(torch.stack(sums).sum(0))
            running = tuple(self._running.updated(total))
        of_batches = self.batch_losses(indices, scored, running)
        return [
            replace(context, running_means=running, batch_losses=losses)
            for context, losses in zip(contexts, of_batches, strict=True)
        ]

    def batch_losses(
        self,
        indices: Sequence[PreferenceIndex],
        scored: Sequence[Scored],
        running: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> list[dict[int, BatchLoss]]:
        """Return losses that depend on all examples, of all processes, for each micro-batch."""
        running = self._running.means() if running is None else running
        found: list[dict[int, BatchLoss]] = [{} for _ in indices]
        for number, term in enumerate(self.terms):
            if not term.loss.batch_dependent:
                continue
            mine = [
                _batch_inputs(term, index, its.completions(running[number]))
                for index, its in zip(indices, scored, strict=True)
            ]
            for losses, of_batch in zip(found, self._together(term, mine), strict=True):
                losses[number] = of_batch
        return found

    def _together(self, term: Term, mine: Sequence[BatchInputs]) -> list[BatchLoss]:
        if self.processes.count == 1:
            return compute_together(term, mine)
        shares = self.processes.all([inputs.to("cpu") for inputs in mine])
        first = sum(len(share) for share in shares[: self.processes.rank])
        everyone = [inputs for share in shares for inputs in share]
        own = compute_together(term, everyone)[first : first + len(mine)]
        return [losses.to(its.first.device) for losses, its in zip(own, mine, strict=True)]

    # A micro-batch --------------------------------------------------------------------------------

    def loss(
        self, batch: Batch, context: StepContext, wrapped: nn.Module | None, training: bool
    ) -> tuple[Tensor, list[LossOutput]]:
        """Return a micro-batch's share of the loss of its optimiser step, and what losses gave.

        In training, metrics are added, and running means move with a batch that is a whole step.
        """
        scored = self.score(batch, wrapped, context.kl is None, training)
        if context.kl is None and scored.mismatched is not None:
            kl = self.kl_estimate([scored.mismatched])
            context = replace(context, kl=kl)
            if training:
                self._log_kl(kl)
        outputs = self.outputs(batch.index, scored, context, training)
        loss = sum(
            term.weight * output.losses.sum() / denominator.clamp(min=1)
            for term, output, denominator in zip(
                self.objective.terms,
                outputs,
                context.denominators[: len(outputs)],
                strict=True,
            )
        )
        assert isinstance(loss, Tensor)  # an objective has a term
        balancing, found = self.score.load_balancing_loss, scored.scores.load_balancing_loss
        if balancing is not None and found is not None:
            # Each micro-batch by its share of the tokens of the optimiser step.
            share = context.counts[-1] / context.denominators[-1].clamp(min=1)
            loss = loss + balancing.weight * share * found
        if training:
            self.add_metrics(self.metrics, batch.index, outputs, scored, context.counts)
            if self.watch is not None:
                self.watch(batch, scored, outputs)
        return loss, outputs

    def outputs(
        self,
        index: PreferenceIndex,
        scored: Scored,
        context: StepContext,
        training: bool = False,
    ) -> list[LossOutput]:
        """Return what each loss of the objective makes of a scored batch."""
        running: Sequence[Mapping[str, Tensor]] | None = context.running_means
        if running is None and training and self.objective.needs_running_means:
            running = self._running.updated(self._running_sums(index, scored))
        running = self._running.means() if running is None else running
        outputs = []
        for number, term in enumerate(self.terms):
            its = index.of_rows(term.rows)
            completions = scored.completions({**(context.kl or {}), **running[number]})
            if number in context.batch_losses:
                (inputs,) = loss_inputs(term, its, completions)
                outputs.append(context.batch_losses[number].output(inputs))
            else:
                outputs.append(term_output(term, its, completions))
        return outputs

    def add_metrics(
        self,
        metrics: MetricSums,
        index: PreferenceIndex,
        outputs: Sequence[LossOutput],
        scored: Scored,
        counts: Tensor,
    ) -> None:
        """Add the metrics of a batch."""
        objective, scores = self.objective, scored.scores
        logps, lengths, of_terms = scores.logps.detach(), scores.lengths, counts[: len(outputs)]
        add_batch_metrics(metrics, objective, outputs, of_terms, index, logps, lengths)
        if self._of_pairs:
            known = logps, scored.ref_logps, lengths
            add_pair_statistics(metrics, objective, outputs, of_terms, index, *known)
        if self._log_ratios and scored.ref_logps is not None:
            add_log_ratios(metrics, objective, index, logps - scored.ref_logps)
        if self.score.token_metrics and scores.statistics is not None:
            of_tokens = {name: getattr(scores.statistics, name) for name in TOKEN_METRICS}
            add_token_metrics(metrics, objective, index, scores.lengths, **of_tokens)
        if scores.load_balancing_loss is not None:
            metrics.add("aux_loss", scores.load_balancing_loss * counts[-1], counts[-1])

    def means_of(self, metrics: MetricSums) -> dict[str, float]:
        """Return the means of metrics over all processes, and forget them.

        Every process must call this; some may have seen no row that has a metric, or no row at all.
        """
        for names in self.processes.all(metrics.names):
            metrics.know(names, self.score.device)
        return with_margins(pair_statistics(self.objective, metrics.totals(self.processes.sum)))

    def _running_sums(self, index: PreferenceIndex, scored: Scored) -> Tensor:
        """Return what a micro-batch adds to the running means of each term; (terms, 4)."""
        completions = scored.completions({})
        return torch.stack(
            [running_sums(term, index.of_rows(term.rows), completions) for term in self.terms]
        )

    # KTO's KL estimate ----------------------------------------------------------------------------

    def kl_estimate(self, sums: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return max(0, mean log-ratio of mismatched completions) over all processes; () each.

        Args:
            sums: ``mismatched_sums`` of the batches of this process; (3,) each.

        Returns:
            What the objective takes of ``kl``, in nats, and ``mean_kl``, in nats per token.
        """
        nothing = torch.zeros(3, dtype=torch.float64, device=self.score.device)
        total = self.processes.sum(torch.stack([nothing, *sums]).sum(0))
        means = (total[:2] / total[2].clamp(min=1)).clamp(min=0).float()
        estimates = dict(zip(("kl", "mean_kl"), means, strict=True))
        return {name: value for name, value in estimates.items() if name in self.objective.inputs}

    def _log_kl(self, estimates: Mapping[str, Tensor]) -> None:
        for name, value in estimates.items():
            self.metrics.add(name, value, 1.0)

    # Checkpoints ----------------------------------------------------------------------------------

    def snapshot(self) -> tuple[MetricSums, RunningMeans]:
        """Return what to go back to if the next step is left out."""
        return self.metrics.copy(), copy(self._running)

    def restore(self, snapshot: tuple[MetricSums, RunningMeans]) -> None:
        """Go back to before a step."""
        self.metrics.go_back_to(snapshot[0])
        self._running = snapshot[1]

    def save(self, folder: Path) -> None:
        """Write into a checkpoint the means over training, if a loss takes one."""
        if self.objective.needs_running_means:
            (folder / RUNNING_FILE).write_text(json.dumps(self._running.state_dict()) + "\n")

    def resume(self, folder: Path | None) -> None:
        """Go on with the means of a checkpoint, or begin anew.

        Args:
            folder: The checkpoint; None to begin.

        Raises:
            ValueError: If a loss takes a mean over training that the checkpoint does not have.
        """
        self._running = RunningMeans(len(self.objective.terms))
        if folder is None or not self.objective.needs_running_means:
            return
        file = folder / RUNNING_FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} has no {RUNNING_FILE}, which the loss {self.objective.name!r} needs to "
                "go on: it was trained with another loss"
            )
        self._running.load_state_dict(json.loads(file.read_text()))


def mismatched_sums(scores: Scores, ref_logps: Tensor) -> Tensor:
    """Return sums over mismatched completions: log-ratios, those per token, 1; (3,), float64.

    Args:
        scores: Of the mismatched completions, by the policy.
        ref_logps: By the reference; (N,), nats.
    """
    log_ratios = (scores.logps - ref_logps).double()
    per_token = average_logps(log_ratios, scores.lengths)
    return torch.stack([log_ratios.sum(), per_token.sum(), log_ratios.new_tensor(len(log_ratios))])


def _batch_inputs(term: Term, index: PreferenceIndex, completions: Completions) -> BatchInputs:
    """Return what a loss on all examples of a step takes of one batch."""
    its = index.of_rows(term.rows)
    (inputs,) = loss_inputs(term, its, completions)
    return BatchInputs(inputs, term_weights(term, its, completions))
