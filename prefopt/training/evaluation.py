"""Evaluation that counts every example once, whatever the batches and processes."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput

from prefopt.data.collate import parts_of
from prefopt.data.prepared import share_of
from prefopt.data.views import select_views
from prefopt.engine.score import Scores
from prefopt.losses import LossOutput
from prefopt.objective import Objective
from prefopt.objective.metrics import MetricSums, batch_rewards, with_margins


class Scored(NamedTuple):
    """A batch, scored.

    Attributes:
        scores: By the policy.
        ref_logps: By the reference; (N,), nats; None if no loss needs it.
        mismatched: Sums over mismatched completions: log-ratios, those per token, 1; (3,).
        ref_per_token_logps: By the reference, of each scored token; (L,), nats.
    """

    scores: Scores
    ref_logps: Tensor | None = None
    mismatched: Tensor | float = 0.0
    ref_per_token_logps: Tensor | None = None

    def summed(self) -> "Scored":
        """Return the same without what is as long as the texts."""
        return self._replace(scores=self.scores.summed(), ref_per_token_logps=None)


class ExactEvaluation(Trainer):  # type: ignore[misc] # transformers is untyped
    """A ``transformers.Trainer`` whose evaluation takes means over examples.

    How batches are prepared, scored and summed up is the subclass's matter.
    """

    objective: Objective
    control: Any
    _prepare: Callable[..., Any]
    _serve_references: Callable[[Any, str], None]
    _score: Callable[..., Scored]
    _outputs: Callable[..., list[LossOutput]]
    _counts: Callable[[Mapping[str, Any]], Tensor]
    _pool: Callable[[Sequence[dict[str, Any]], Sequence[Scored]], None]
    _add_metrics: Callable[..., None]
    _kl_estimate: Callable[[Iterable[Tensor | float]], dict[str, Tensor]]
    _sum_over_processes: Callable[[Tensor], Tensor]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return a loader over this process's rows of an evaluation set, raw or prepared."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        dataset = self._prepare(dataset, self.args, "eval")
        self._serve_references(dataset, "eval")
        if self.args.world_size > 1:
            dataset = share_of(dataset, self.args.process_index, self.args.world_size)
        return DataLoader(
            dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return a loader over this process's rows of a test set."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate exactly: every example once, means over examples, whatever the batches.

        KTO's KL estimate is that of the whole set.
        """
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        parts = list(self._evaluated(dataloader))
        kl: dict[str, Tensor] = {}
        if self.objective.needs_kl:
            kl = self._kl_estimate(scored.mismatched for _, scored in parts)
        if self.objective.needs_step:
            self._pool([batch for batch, _ in parts], [scored for _, scored in parts])
        sums = MetricSums()
        rewards: list[tuple[Tensor | None, ...]] = []
        for batch, scored in parts:
            outputs, counts = self._outputs(batch, scored, kl), batch["counts"]
            for index, output in enumerate(outputs):
                sums.add(f"term/{index}", output.losses.sum(), counts[index])
            self._add_metrics(sums, batch, outputs, scored.scores, counts)
            rewards.append(batch_rewards(self.objective, outputs, batch))
        means = with_margins(sums.means(self._sum_over_processes))
        terms = [means.pop(f"term/{i}", math.nan) for i in range(len(self.objective.terms))]
        means["loss"] = sum(
            term.weight * value for term, value in zip(self.objective.terms, terms, strict=True)
        )
        means |= {name: float(estimate) for name, estimate in kl.items()}
        predictions, labels = self._collected(rewards)
        if self.compute_metrics is not None:
            means |= self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
        metrics = {_prefixed(name, metric_key_prefix): value for name, value in means.items()}
        examples = sum(int(batch["examples"]) for batch, _ in parts)
        total = self._sum_over_processes(torch.tensor(examples, device=self.args.device))
        return EvalLoopOutput(predictions, labels, metrics, int(total))

    @torch.no_grad()
    def _evaluated(self, dataloader: DataLoader[Any]) -> Iterator[tuple[dict[str, Any], Scored]]:
        """Yield what the losses and metrics need of each batch, scored: little, for all are held.

        KTO's KL estimate is that of the whole set, so no loss is known before the last batch.
        """
        for batch in dataloader:
            for part in parts_of(self._prepare_inputs(batch)):
                scored = self._score(part, wrapped=self._eval_wrapper())
                views = select_views(part) | {"counts": self._counts(part)}
                yield views, scored if self.objective.needs_tokens else scored.summed()
            self.control = self.callback_handler.on_prediction_step(
                self.args, self.state, self.control
            )

    def _eval_wrapper(self) -> nn.Module | None:
        """Sharded models must be called through their wrapper; replicas need no company."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self.model_wrapped if sharded else None

    def _collected(self, rewards: list[tuple[Tensor | None, ...]]) -> tuple[Any, Any]:
        """Return predictions and labels for ``compute_metrics``, from all processes."""
        if self.compute_metrics is None:
            return None, None
        columns = []
        for column in zip(*rewards, strict=True):
            parts = [part.float().cpu().numpy() for part in column if part is not None]
            local = np.concatenate(parts) if parts else None
            gathered = gather_objects(local) if self.args.world_size > 1 else [local]
            known = [part for part in gathered if part is not None]
            columns.append(np.concatenate(known) if known else None)
        chosen, rejected, thumbs, labels = columns
        if chosen is not None:
            return (chosen, rejected), None
        return thumbs, None if labels is None else labels.astype(bool)


def gather_objects(value: Any) -> list[Any]:
    """Return an object of every process, in their order."""
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def _prefixed(name: str, prefix: str) -> str:
    return name if name.startswith(f"{prefix}_") else f"{prefix}_{name}"
