"""What losses must know of a whole optimiser step before its first backward pass.

A step is one set of examples, however it is cut into micro-batches, parts and processes: over what
each loss takes its mean, KTO's KL estimate, running means, and losses in which each example depends
on all others.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Trainer

from prefopt.engine import Scorer
from prefopt.engine.moe import RouterLoss, routed_tokens
from prefopt.engine.score import Scores
from prefopt.losses import LossOutput
from prefopt.losses.common import average_logps
from prefopt.objective import Objective
from prefopt.objective.batch_losses import Pooled, RunningMeans, pool, running_sums, with_gradient
from prefopt.objective.inputs import (
    Completions,
    loss_inputs,
    rows_of,
    term_counts,
    term_output,
    term_weights,
)
from prefopt.objective.metrics import MetricSums
from prefopt.objective.objective import Term
from prefopt.reference import References
from prefopt.training.evaluation import Scored, gather_objects

# What a checkpoint keeps of means over training.
RUNNING_FILE = "prefopt_running.json"


class WholeStep(Trainer):  # type: ignore[misc] # transformers is untyped
    """The part of a trainer that makes losses independent of how a step is cut."""

    objective: Objective
    scorer: Scorer
    router_loss: RouterLoss | None
    _references: References | None
    _running: RunningMeans
    _sums: MetricSums
    _score: Callable[..., Scored]

    def _prepare_step(self, parts: Sequence[dict[str, Any]]) -> Tensor:
        """Tell each micro-batch of a step what it must know of the others.

        Returns:
            Over what each loss of the objective takes its mean, over all processes.
        """
        for part in parts:
            part["counts"] = self._counts(part)
        denominators = self._sum_over_processes(
            torch.stack([part["counts"] for part in parts]).sum(0)
        )
        for part in parts:
            part["denominators"] = denominators
        if self.objective.needs_kl and "continuation" not in parts[0]:
            estimate = self._kl_estimate(map(self._mismatched_log_ratios, parts))
            for part in parts:
                part["kl_estimate"] = estimate
            self._log_kl(estimate)
        scheduled = [term.beta for term in self._terms if term.options.beta_final is not None]
        if scheduled:
            self._sums.add("beta", denominators.new_tensor(scheduled[0]), 1.0)
        if self.objective.needs_step and (len(parts) > 1 or self.args.world_size > 1):
            self._look_ahead(parts)
        return denominators

    def _counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return over what each loss of the objective takes its mean in this batch; (terms,).

        With a router loss the tokens that it is taken over come last; (terms + 1,).
        """
        counts = [term_counts(term, batch, batch["lengths"]) for term in self.objective.terms]
        if self.router_loss is not None:
            counts.append(routed_tokens(batch))
        return torch.stack(counts).double()

    @torch.no_grad()
    def _look_ahead(self, parts: Sequence[dict[str, Any]]) -> None:
        """Score all micro-batches once without gradient, for losses that need all examples."""
        scored = [self._score(part, wrapped=None) for part in parts]
        if self.objective.needs_running_means:
            sums = [self._running_sums(*pair) for pair in zip(parts, scored, strict=True)]
            total = self._sum_over_processes(torch.stack(sums).sum(0))
            means = self._running.updated(total)
            for part in parts:
                part["running_means"] = means
        self._pool(parts, scored)

    def _pool(self, parts: Sequence[dict[str, Any]], scored: Sequence[Scored]) -> None:
        """Compute pooled losses over all micro-batches of all processes, for each of ours."""
        for part in parts:
            part["pooled"] = {}
        for index, term in enumerate(self._terms):
            if term.loss.pooled:
                mine = [
                    self._pooled_inputs(index, *pair) for pair in zip(parts, scored, strict=True)
                ]
                for part, pooled in zip(parts, self._pooled(term, mine), strict=True):
                    part["pooled"][index] = pooled

    def _pooled_inputs(
        self, index: int, part: Mapping[str, Any], scored: Scored
    ) -> dict[str, Tensor]:
        term = self._terms[index]
        views = rows_of(term, part)
        completions = _completions(scored, self._running_means(part, scored)[index])
        (inputs,) = loss_inputs(term, views, completions)
        weights = term_weights(term, views, completions)
        return inputs if weights is None else inputs | {"weights": weights}

    def _pooled(self, term: Term, mine: Sequence[dict[str, Tensor]]) -> list[Pooled]:
        if self.args.world_size == 1:
            return pool(term, mine)
        on_cpu = [{name: value.cpu() for name, value in inputs.items()} for inputs in mine]
        shares = gather_objects(on_cpu)
        first = sum(len(share) for share in shares[: self.args.process_index])
        everyone = [inputs for share in shares for inputs in share]
        return [
            pooled.to(self.args.device)
            for pooled in pool(term, everyone)[first : first + len(mine)]
        ]

    @property
    def _terms(self) -> list[Term]:
        """The terms of the objective at this point of training."""
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return [term.at(progress) for term in self.objective.terms]

    # One batch ------------------------------------------------------------------------------------

    def _outputs(
        self, batch: Mapping[str, Any], scored: Scored, kl: Mapping[str, Tensor]
    ) -> list[LossOutput]:
        """Return what each loss of the objective makes of a scored batch."""
        running = self._running_means(batch, scored)
        pooled = batch.get("pooled", {})
        outputs = []
        for index, term in enumerate(self._terms):
            views = rows_of(term, batch)
            completions = _completions(scored, {**kl, **running[index]})
            if index in pooled:
                (inputs,) = loss_inputs(term, views, completions)
                outputs.append(with_gradient(pooled[index], inputs))
            else:
                outputs.append(term_output(term, views, completions))
        return outputs

    def _running_means(self, batch: Mapping[str, Any], scored: Scored) -> list[dict[str, Tensor]]:
        """Return the running means of each term; in training, with the step of this batch."""
        if "running_means" in batch:
            known: list[dict[str, Tensor]] = batch["running_means"]
            return known
        if not (self.objective.needs_running_means and self.model.training):
            return self._running.means()
        return self._running.updated(self._running_sums(batch, scored))

    def _running_sums(self, batch: Mapping[str, Any], scored: Scored) -> Tensor:
        """Return what a micro-batch adds to the running means of each term; (terms, 4)."""
        completions = _completions(scored, {})
        return torch.stack(
            [running_sums(term, rows_of(term, batch), completions) for term in self._terms]
        )

    def _save_running_means(self, folder: Path) -> None:
        if self.objective.needs_running_means:
            (folder / RUNNING_FILE).write_text(json.dumps(self._running.state_dict()) + "\n")

    def _load_running_means(self, folder: Path | None) -> None:
        """Go on with the running means of a checkpoint, or begin anew."""
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

    # KTO's KL estimate ----------------------------------------------------------------------------

    def _how_mismatched(self) -> Literal["separate", "continued"] | None:
        """Return how KTO's mismatched completions are scored: where they can, with the others.

        The KL estimate is that of the whole optimiser step, so with several micro-batches it must
        be known before the first of them is scored.
        """
        if not self.objective.needs_kl:
            return None
        several = self.args.gradient_accumulation_steps > 1 or (
            self.args.max_tokens_per_batch is not None and self.args.world_size > 1
        )
        return "separate" if several or self.scorer.layout == "padded" else "continued"

    def _kl_estimate(self, log_ratios: Iterable[Tensor | float]) -> dict[str, Tensor]:
        """Return max(0, mean log-ratio of mismatched completions) over all processes; () each.

        Args:
            log_ratios: ``mismatched_sums``, in parts; (3,).

        Returns:
            What the objective takes of ``kl``, in nats, and ``mean_kl``, in nats per token.
        """
        total = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        for part in log_ratios:
            total += part
        total = self._sum_over_processes(total)
        means = (total[:2] / total[2].clamp(min=1)).clamp(min=0).float()
        estimates = dict(zip(("kl", "mean_kl"), means, strict=True))
        return {name: value for name, value in estimates.items() if name in self.objective.inputs}

    def _log_kl(self, estimates: Mapping[str, Tensor]) -> None:
        for name, value in estimates.items():
            self._sums.add(name, value, 1.0)

    @torch.no_grad()
    def _mismatched_log_ratios(self, batch: Mapping[str, Any]) -> Tensor:
        """Return ``mismatched_sums`` of a batch whose mismatched completions are its own; (3,)."""
        assert self._references is not None  # no loss eats a KL estimate without a reference
        scores = self.scorer.score(batch["kl"], context=self.accelerator.autocast)
        reference = self._references.logps(batch["kl"])
        return mismatched_sums(scores, reference.logps)

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return summed


def mismatched_sums(scores: Scores, ref_logps: Tensor) -> Tensor:
    """Return sums over mismatched completions: log-ratios, those per token, 1; (3,), float64.

    Args:
        scores: Of the mismatched completions, by the policy.
        ref_logps: By the reference; (N,), nats.
    """
    log_ratios = (scores.logps - ref_logps).double()
    per_token = average_logps(log_ratios, scores.lengths)
    return torch.stack([log_ratios.sum(), per_token.sum(), log_ratios.new_tensor(len(log_ratios))])


def _completions(scored: Scored, scalars: Mapping[str, Tensor]) -> Completions:
    scores = scored.scores
    return Completions(
        scores.logps,
        scores.lengths,
        scored.ref_logps,
        scores.per_token_logps,
        scored.ref_per_token_logps,
        scores.divergences,
        None if scores.statistics is None else scores.statistics.log_collisions,
        scalars=scalars,
    )
