"""One trainer for every preference loss and every kind of preference data.

It wires the stations together (data, reference, engine, losses) and computes nothing that a station
could. What it adds to ``transformers.Trainer`` is exactness: a mean is taken over the examples of
the whole optimiser step, whatever the micro-batches and processes; so is KTO's KL estimate;
evaluation does not depend on its batch size.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset
from rich.console import Console
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback
from transformers.trainer_utils import set_seed

from prefopt.config import PreferenceConfig
from prefopt.data import (
    PreparedDataset,
    check_kind,
    check_kind_by_kind,
    prepare_dataset,
)
from prefopt.data.collate import PreferenceCollator, parts_of
from prefopt.data.columns import check_datasets, check_margins
from prefopt.data.kinds import first_kinds
from prefopt.data.prepared import PREPARED_COLUMNS, examples_of, is_prepared, is_stream
from prefopt.data.sampling import MixedLabels, unpaired_labels
from prefopt.engine import Scorer
from prefopt.engine.check import check_examples
from prefopt.engine.compilation import compile_layers
from prefopt.engine.cpu import denormals_flushed, heap_kept
from prefopt.engine.moe import RouterLoss
from prefopt.engine.score import Scores
from prefopt.engine.token_statistics import TOKEN_METRICS
from prefopt.losses import LossOutput
from prefopt.objective.batch_losses import RunningMeans
from prefopt.objective.metrics import (
    MetricSums,
    add_batch_metrics,
    add_token_metrics,
    with_margins,
)
from prefopt.reference import References
from prefopt.training.evaluation import ExactEvaluation, Scored
from prefopt.training.model import (
    add_adapter,
    check_vocabulary,
    learned_positions,
    load_policy,
    load_tokenizer,
    switch_off_dropout,
)
from prefopt.training.model_card import write_model_card
from prefopt.training.reference import RunReference, checkpoint_folder
from prefopt.training.step import WholeStep, mismatched_sums


class PreferenceTrainer(RunReference, WholeStep, ExactEvaluation):
    """Trains a causal language model on preferences.

    Args:
        model: An id, a path, or a model (``PreTrainedModel`` or ``PeftModel``).
        ref_model: The reference: a model, an id or a path; None for the policy as it is given.
        args: The arguments; None for the defaults.
        data_collator: Replaces ``prefopt.data.collate.PreferenceCollator``.
        train_dataset: Preferences in any format of ``prefopt.data``; a map-style or a streaming
            dataset.
        eval_dataset: The same, or a dictionary of such by name.
        processing_class: The tokenizer; None to load it from where the model came from.
        compute_metrics: Called after evaluation with ``EvalPrediction(predictions, label_ids)``:
            on pairs ``(chosen_rewards, rejected_rewards)`` and None, on thumbs ``rewards`` and
            their labels.
        callbacks: As in ``transformers.Trainer``.
        optimizers: As in ``transformers.Trainer``.
        quantization_config: How to quantise a model given by id or path.
        peft_config: An adapter to add to the model.

    Attributes:
        objective: The losses that are minimised.
        max_length: Tokens of prompt + completion kept; no more than the model has positions.
        scorer: Scores completions with the policy.
        router_loss: Load-balancing loss of a mixture of experts that is added; None for none.
        data_reports: What preparation did to each dataset, by name.

    Raises:
        ValueError: If the losses, the options, the data and the model do not fit each other.
    """

    _tag_names = ("prefopt",)
    _signature_columns: list[str] | None
    control: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: PreferenceConfig | None = None,
        data_collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        args = PreferenceConfig("prefopt_output") if args is None else args
        _check_arguments(model, ref_model, args, train_dataset, eval_dataset)
        set_seed(args.seed)  # adapters start from random weights
        model = load_policy(model, args, quantization_config)
        tokenizer = load_tokenizer(processing_class, model, args)
        check_vocabulary(tokenizer, model)
        positions = learned_positions(model)
        model = add_adapter(model, peft_config, args)
        if args.disable_dropout:
            switch_off_dropout(model)

        self._tokenizer = tokenizer
        self._console = Console(
            stderr=True, highlight=False, soft_wrap=True, quiet=not args.should_log
        )
        self.data_reports: dict[str, Any] = {}
        self.max_length = self._fit_length(args.max_length, positions)
        self.objective = args.objective_for(first_kinds(train_dataset, eval_dataset))
        self._check_reference(args, ref_model)
        with args.main_process_first(desc="dataset preparation"):
            if train_dataset is not None:
                train_dataset = self._prepare(train_dataset, args, "train")
            if isinstance(eval_dataset, dict):
                eval_dataset = {
                    name: self._prepare(part, args, name) for name, part in eval_dataset.items()
                }
            elif eval_dataset is not None:
                eval_dataset = self._prepare(eval_dataset, args, "eval")
        if is_stream(train_dataset):
            # Batches are records of several shapes, which accelerate cannot cut up and send around.
            args.accelerator_config.dispatch_batches = False

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or PreferenceCollator(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class or tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if args.n_gpu > 1:
            raise ValueError(
                "several GPUs in one process (nn.DataParallel) are not supported: start one "
                "process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one GPU"
            )
        if args.max_tokens_per_batch and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "max_tokens_per_batch cuts batches into as many passes as each process needs, but "
                "sharded models (FSDP, DeepSpeed) need as many passes in all processes; lower "
                "per_device_train_batch_size and raise gradient_accumulation_steps instead"
            )
        # Losses are normalised over the optimiser step here, so nothing is left to scale.
        self.model_accepts_loss_kwargs = True
        self.scorer = self._scorer_of(self.model)
        self.router_loss = RouterLoss.of(self.model, args.router_aux_loss_coef)
        self._references: References | None = None
        self._sums = MetricSums()
        self._running = RunningMeans(len(self.objective.terms))
        self._sequence_tokens = torch.zeros((), dtype=torch.int64)
        if self.objective.needs_reference:
            self._set_up_reference(ref_model)
        if data_collator is None:
            self.data_collator = PreferenceCollator(
                layout=self.scorer.layout,
                pad_token_id=tokenizer.pad_token_id or 0,
                reference=None if self._references is None else self._references.store,
                mismatched=self._how_mismatched(),
                max_tokens=args.max_tokens_per_batch,
                by_kind=self.objective.by_kind,
            )
        if args.check_first_batch and train_dataset is not None:
            first = islice(examples_of(train_dataset, False), args.train_batch_size)
            largest = check_examples(self.scorer, list(first), self.accelerator.autocast)
            self._console.print(
                f"prefopt: first batch: log-probs equal the plain forward's to {largest:.1e} nats"
            )
        if args.torch_compile:
            # Not by accelerate, which would compile the model as a whole.
            self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
            compile_layers(
                self.model, backend=args.torch_compile_backend, mode=args.torch_compile_mode
            )
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(list(self._tag_names))
        self._console.print(f"prefopt: loss [bold]{self.objective.name}[/], {self.scorer}")

    def _scorer_of(self, model: Any) -> Scorer:
        context = self.accelerator.autocast
        return Scorer(model, self.args.layout, self.args.attn_backend, context)

    # Data -----------------------------------------------------------------------------------------

    def _fit_length(self, max_length: int | None, positions: int | None) -> int | None:
        """Return max_length, or the number of positions the model has if that is less."""
        if positions is None or (max_length is not None and max_length <= positions):
            return max_length
        self._console.print(
            f"prefopt: max_length {max_length} -> {positions}: the model has no more positions"
        )
        return positions

    def _prepare(self, dataset: Any, args: PreferenceConfig, name: str) -> Any:
        """Return a dataset as token ids, checked against the objective, its report printed."""
        if is_prepared(dataset, self.objective.needs_kl):
            return dataset
        prepared: PreparedDataset = prepare_dataset(
            dataset,
            self._tokenizer,
            max_length=self.max_length,
            num_proc=args.dataset_num_proc,
            needs_kl=self.objective.needs_kl,
            name=name,
        )
        if self.objective.by_kind:
            check_kind_by_kind(prepared.kinds, self.objective.kinds_by_rows)
        else:
            check_kind(prepared.kinds, self.objective.data_kinds)
        check_margins(prepared.dataset.column_names or ["margin"], self.objective.inputs)
        if prepared.report is not None:
            self.data_reports[name] = prepared.report
            self._console.print(prepared.report.render(), markup=False)
        return prepared.dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(PREPARED_COLUMNS)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the rows; a random one of unpaired rows mixes their labels evenly."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "random" and isinstance(dataset, Dataset):
            labels = unpaired_labels(dataset)
            if labels is not None:
                data_seed = self.args.data_seed
                return MixedLabels(labels, self.args.seed if data_seed is None else data_seed)
        return super()._get_train_sampler(train_dataset)

    # One step -------------------------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, as ``transformers.Trainer`` does.

        On a CPU denormal gradients count as zero, and memory is kept between steps.
        """
        checkpoint = checkpoint_folder(resume_from_checkpoint, self.args.output_dir)
        self._begin_with_reference(checkpoint)
        self._load_running_means(checkpoint)
        with ExitStack() as stack:
            if self.args.device.type == "cpu":
                stack.enter_context(denormals_flushed())
                stack.enter_context(heap_kept())
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """Return the micro-batches of an optimiser step, with what they must know of each other.

        That is the denominator of each loss (``denominators``) and KTO's KL estimate
        (``kl_estimate``), both over all micro-batches of all processes.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        batches = [self._prepare_inputs(batch) for batch in batches]
        parts = [part for batch in batches for part in parts_of(batch)]
        denominators = self._prepare_step(parts)
        return batches, denominators.sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the loss of its optimiser step.

        Summed over micro-batches and averaged over processes, as gradients are, the shares give the
        mean over all examples of the step.
        """
        scored = self._score(inputs, wrapped=model)
        kl = inputs.get("kl_estimate", {})
        if not kl and self.objective.needs_kl:
            kl = self._kl_estimate([scored.mismatched])
            if self.model.training:
                self._log_kl(kl)
        outputs, scores = self._outputs(inputs, scored, kl), scored.scores
        counts = inputs["counts"] if "counts" in inputs else self._counts(inputs)
        denominators = inputs.get("denominators", counts)  # of its own when called by hand
        loss = sum(
            term.weight * output.losses.sum() / denominator.clamp(min=1)
            for term, output, denominator in zip(
                self.objective.terms, outputs, denominators[: len(outputs)], strict=True
            )
        )
        if self.router_loss is not None:
            # Each micro-batch by its share of the tokens of the optimiser step.
            weight = self.router_loss.weight * counts[-1] / denominators[-1].clamp(min=1)
            loss = loss + weight * scores.router_loss
        if self.model.training:
            loss = loss * self.accelerator.num_processes
            self._add_metrics(self._sums, inputs, outputs, scores, counts)
            self._sequence_tokens = (
                self._sequence_tokens.to(loss.device) + inputs["sequence_tokens"]
            )
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run forward and backward passes, part by part of a batch that is too large for one row.

        Activations are kept in CPU memory if asked for.
        """
        *earlier, last = parts_of(inputs)
        loss = torch.zeros((), device=self.args.device)
        for part in earlier:
            with self.accelerator.no_sync(model), self._offloading():
                loss += super().training_step(model, part, num_items_in_batch)
        with self._offloading():
            loss += super().training_step(model, last, num_items_in_batch)
        return loss

    def _offloading(self) -> AbstractContextManager[Any]:
        if not self.args.activation_offloading:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())

    def _score(self, batch: dict[str, Any], wrapped: nn.Module | None) -> Scored:
        reference = None
        if self._references is not None:
            # First, while no activations of the policy are held.
            reference = self._references.logps(batch, self.objective.needs_divergences)
        scores = self.scorer.score(
            batch,
            wrapped,
            self.accelerator.autocast,
            router_loss=self.router_loss,
            statistics=self._statistics,
            divergence_from=None if reference is None else reference.predictions,
        )
        if reference is None:
            return Scored(scores)
        mismatched: Tensor | float = 0.0
        if scores.continuation is not None and reference.continuation is not None:
            mismatched = mismatched_sums(scores.continuation, reference.continuation)
        elif self.objective.needs_kl and "kl_estimate" not in batch:
            mismatched = self._mismatched_log_ratios(batch)
        return Scored(scores, reference.logps, mismatched, reference.per_token_logps)

    @property
    def _statistics(self) -> tuple[str, ...]:
        """What metrics and weights need of each token beside its log-prob."""
        of_metrics = TOKEN_METRICS if self.args.log_token_metrics else ()
        return (*of_metrics, *(("log_collisions",) if self.objective.needs_collisions else ()))

    def _add_metrics(
        self,
        sums: MetricSums,
        batch: Mapping[str, Any],
        outputs: Sequence[LossOutput],
        scores: Scores,
        counts: Tensor,
    ) -> None:
        of_terms = counts[: len(outputs)]
        logps = scores.logps.detach()
        add_batch_metrics(sums, self.objective, outputs, of_terms, batch, logps, scores.lengths)
        if self.args.log_token_metrics and scores.statistics is not None:
            of_tokens = {name: getattr(scores.statistics, name) for name in TOKEN_METRICS}
            add_token_metrics(sums, self.objective, batch, scores.lengths, **of_tokens)
        if scores.router_loss is not None:
            sums.add("aux_loss", scores.router_loss * counts[-1], counts[-1])

    # Logging --------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the metrics of the optimiser steps since the last time."""
        if "loss" in logs:
            logs |= with_margins(self._sums.means(self._sum_over_processes))
            seen = self._sum_over_processes(self._sequence_tokens.to(self.args.device))
            logs["num_tokens"] = float(seen)
        super().log(logs, start_time)

    # Saving ---------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_model_card(folder, self)
            self._save_reference(folder)
            self._save_running_means(folder)


def _check_arguments(
    model: Any, ref_model: Any, args: Any, train_dataset: Any, eval_dataset: Any
) -> None:
    if not isinstance(args, PreferenceConfig):
        raise TypeError(f"args must be a PreferenceConfig, got {type(args).__name__}")
    if ref_model is not None and ref_model is model:
        raise ValueError(
            "model and ref_model are the same object, so the reference would move with the policy; "
            "leave ref_model out: the reference is then the policy as it is given"
        )
    check_datasets(train_dataset, eval_dataset)
