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
from transformers.trainer_utils import get_last_checkpoint

from prefopt.engine import Scorer
from prefopt.engine.router import RouterLoss, routed_tokens
from prefopt.exact_evaluation import Scored, gather_objects
from prefopt.losses import LossOutput, Objective
from prefopt.losses.inputs import (
    Completions,
    loss_inputs,
    rows_of,
    term_counts,
    term_output,
    term_weights,
)
from prefopt.losses.metrics import MetricSums
from prefopt.losses.objective import Term
from prefopt.losses.pool import Pooled, RunningMeans, pool, step_sums, with_gradient
from prefopt.reference import References

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
            self._sums.add("kl", estimate, 1.0)
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
            sums = torch.stack([_step_sums(*pair) for pair in zip(parts, scored, strict=True)])
            means = self._running.updated(self._sum_over_processes(sums.sum(0)))
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
                    self._pooled_inputs(term, *pair) for pair in zip(parts, scored, strict=True)
                ]
                for part, pooled in zip(parts, self._pooled(term, mine), strict=True):
                    part["pooled"][index] = pooled

    def _pooled_inputs(
        self, term: Term, part: Mapping[str, Any], scored: Scored
    ) -> dict[str, Tensor]:
        views = rows_of(term, part)
        completions = self._completions(part, scored, None)
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
        self, batch: Mapping[str, Any], scored: Scored, kl: Tensor | None
    ) -> list[LossOutput]:
        """Return what each loss of the objective makes of a scored batch."""
        completions = self._completions(batch, scored, kl)
        pooled = batch.get("pooled", {})
        outputs = []
        for index, term in enumerate(self._terms):
            views = rows_of(term, batch)
            if index in pooled:
                (inputs,) = loss_inputs(term, views, completions)
                outputs.append(with_gradient(pooled[index], inputs))
            else:
                outputs.append(term_output(term, views, completions))
        return outputs

    def _completions(
        self, batch: Mapping[str, Any], scored: Scored, kl: Tensor | None
    ) -> Completions:
        scalars = {} if kl is None else {"kl": kl}
        if self.objective.needs_running_means:
            scalars |= batch.get("running_means") or self._means_with(batch, scored)
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

    def _means_with(self, batch: Mapping[str, Any], scored: Scored) -> dict[str, Tensor]:
        """Return the running means; in training, with a step that is this batch alone."""
        if not self.model.training:
            return self._running.means()
        return self._running.updated(_step_sums(batch, scored))

    def _save_running_means(self, folder: Path) -> None:
        if self.objective.needs_running_means:
            (folder / RUNNING_FILE).write_text(json.dumps(self._running.state_dict()) + "\n")

    def _load_running_means(self, resume_from_checkpoint: str | bool | None) -> None:
        """Go on with the running means of a checkpoint, or begin anew."""
        self._running = RunningMeans()
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if not (folder and self.objective.needs_running_means):
            return
        file = Path(folder) / RUNNING_FILE
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

    def _kl_estimate(self, log_ratios: Iterable[Tensor | float]) -> Tensor:
        """Return max(0, mean log-ratio of mismatched completions) over all processes; nats.

        Args:
            log_ratios: Their sum and count, in parts; (2,).
        """
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for part in log_ratios:
            total += part
        total = self._sum_over_processes(total)
        return (total[0] / total[1].clamp(min=1)).clamp(min=0).float()

    @torch.no_grad()
    def _mismatched_log_ratios(self, batch: Mapping[str, Any]) -> Tensor:
        """Return sum and count of policy minus reference over mismatched completions; (2,)."""
        assert self._references is not None  # no loss eats a KL estimate without a reference
        scores = self.scorer.score(batch["kl"], context=self.accelerator.autocast)
        reference = self._references.logps(batch["kl"])
        return sum_and_count(scores.logps - reference.logps)

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return summed


def sum_and_count(values: Tensor) -> Tensor:
    """Return the sum of values and how many they are; (2,), float64."""
    return torch.stack([values.sum(), values.new_tensor(len(values))]).double()


def _step_sums(batch: Mapping[str, Any], scored: Scored) -> Tensor:
    assert scored.ref_logps is not None  # running means are of log-ratios
    return step_sums(
        scored.scores.logps, scored.ref_logps, batch["chosen_index"], batch["rejected_index"]
    )
