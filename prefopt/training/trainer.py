"""One trainer for every preference loss and every kind of preference data.

It overrides the hooks of ``transformers.Trainer`` and hands them to plain collaborators: ``Run``
(policy and data), ``ReferenceSetup``, ``BatchScorer``, ``StepStatistics`` and ``Evaluator``. What
they add is exactness: a mean is taken over the examples of the whole optimiser step, whatever the
micro-batches and processes; so is KTO's KL estimate; evaluation does not depend on its batch size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils.quantization_config import QuantizationConfigMixin

from prefopt.batch import Batch
from prefopt.config import PreferenceConfig
from prefopt.data import DataError
from prefopt.data.collate import BATCHES, PreferenceCollator, batches_of
from prefopt.data.prepared import PREPARED_COLUMNS, examples_of, is_stream
from prefopt.data.steps import StepShare, row_tokens
from prefopt.engine.cpu import activations_on_cpu, set_up_for
from prefopt.engine.moe import LoadBalancingLoss
from prefopt.engine.noise import Noise
from prefopt.engine.probe_examples import probe_examples
from prefopt.losses import LossOutput
from prefopt.migration import check_trainer_arguments
from prefopt.reference.references import References, Served
from prefopt.training.adapter import check_trained, rate_advice
from prefopt.training.checkpoints import is_checkpoint
from prefopt.training.collation import collator_of
from prefopt.training.diagnostics import DiagnosticsCallback
from prefopt.training.evaluation import Evaluator, check_best_metric
from prefopt.training.fsdp import (
    as_many_everywhere,
    check_launch,
    check_passes,
    make_ready,
    writes_parts,
)
from prefopt.training.launch import Launch
from prefopt.training.loaders import (
    asked_for,
    evaluation_loader,
    mixed_labels,
    rows_seen,
    steps_of,
    training_loader,
)
from prefopt.training.model import as_given, compile_policy, only_by_name
from prefopt.training.model_card import CardDetails, write_model_card
from prefopt.training.optimizers import to_result, to_training_point
from prefopt.training.out_of_memory import MemoryWatch
from prefopt.training.profiling import ProfileSteps
from prefopt.training.quantisation import check_placed, check_quantised, with_quantization
from prefopt.training.reference import FollowPolicy
from prefopt.training.run import check_hooks, named_datasets, prepare_run
from prefopt.training.safety import Safety
from prefopt.training.samples import sample_callback
from prefopt.training.step import BatchScorer, StepStatistics
from prefopt.training.throughput import Throughput
from prefopt.training.trackers import give_prompts
from prefopt.training.unused import check_unmoved, in_parts
from prefopt.training.weights import check_trainable_dtype
from prefopt.training.zero import gathering_on_save, ready_for_engine

if TYPE_CHECKING:
    from peft import PeftConfig

# Beside the batches of a step stands, under this name, what each must know of the others.
CONTEXTS = "contexts"


class PreferenceTrainer(Trainer):  # type: ignore[misc] # transformers is untyped
    """Trains a causal language model on preferences.

    Args:
        model: An id, a path, or a model (``PreTrainedModel`` or ``PeftModel``).
        ref_model: The reference: a model, an id or a path; None for the policy as it is given.
        args: The arguments; None for the defaults.
        data_collator: Replaces ``prefopt.data.PreferenceCollator``; it may be given no rows.
        train_dataset: Preferences in any format of ``prefopt.data``; a map-style or a streaming
            dataset, or a list of map-style ones, each alone or in a tuple with its weight
            (``prefopt.data.WeightedDataset``).
        eval_dataset: The same, or a dictionary of such by name.
        processing_class: The tokenizer; None to load it from where the model came from.
        compute_metrics: Called after evaluation with ``EvalPrediction(predictions, label_ids)``:
            on pairs ``(chosen_rewards, rejected_rewards)`` and None, on unpaired data ``rewards``
            and their labels.
        callbacks: As in ``transformers.Trainer``.
        optimizers: As in ``transformers.Trainer``.
        quantization_config: How to quantise a model given by id or path, and a ``ref_model`` by id
            or path too: a configuration of transformers, or its fields.
        peft_config: An adapter to add to the model.
        **old: Arguments that TRL's trainers had once; refused with what to use instead, but for
            values that change nothing.

    Attributes:
        objective: The losses that are minimised.
        max_length: Tokens of prompt + completion kept; no more than the model has positions.
        scorer: Scores completions with the policy.
        references: Serves reference log-probs; None if no loss needs them.
        load_balancing_loss: Added for a mixture of experts; None for none.
        data_reports: What preparation did to each dataset, by name.
        card_details: What model cards say that the run does not know: ``create_model_card``.

    Raises:
        TypeError: If ``args``, a dataset, the tokenizer or ``peft_config`` is of the wrong type, or
            an argument never existed.
        ValueError: If the losses, the options, the data and the model do not fit each other: an
            option or a reference that the loss cannot use, options of loading for a model that is
            loaded already, a tokenizer or reference of another vocabulary, a model that cannot be
            scored (encoder-decoder, prompt tuning) or not in the layout or with the attention
            backend that was asked for, no dataset, several GPUs in one process, a loss or option
            that sharded training cannot have. Wrong rows are a ``prefopt.data.DataError``, which
            is a ValueError and names row and column.
        ImportError: If ``peft_config`` is given and peft is not installed.
        OSError: If a model, a tokenizer or a reference by id or path is not found.
    """

    _tag_names: tuple[str, ...] = ("prefopt",)
    _fit_dtype = staticmethod(check_trainable_dtype)
    _signature_columns: list[str] | None
    control: Any

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: str | nn.Module | None = None,
        args: PreferenceConfig | None = None,
        data_collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | list[Any] | None = None,
        eval_dataset: Dataset | IterableDataset | list[Any] | dict[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        quantization_config: Mapping[str, Any] | QuantizationConfigMixin | None = None,
        peft_config: "PeftConfig | None" = None,
        **old: Any,
    ) -> None:
        if old:
            check_trainer_arguments(old, signature(PreferenceTrainer).parameters, PreferenceConfig)
        args = PreferenceConfig("prefopt_output") if args is None else args
        check_hooks(data_collator, compute_metrics, callbacks, optimizers)
        model, ref_model = as_given(model), as_given(ref_model)
        if quantization_config is not None:
            if not isinstance(model, str):
                raise ValueError(only_by_name("quantization_config"))
            args = with_quantization(args, quantization_config)
        data = (train_dataset, eval_dataset, processing_class)
        run = prepare_run(model, args, ref_model, *data, peft_config)
        check_quantised(run.model)
        check_best_metric(args, run.objective, run.eval_dataset, compute_metrics)
        if run.train_dataset is not None:
            check_placed(run.model)
            check_trained(run.model, optimizers[0])
            if optimizers[0] is None:
                run.say(rate_advice(run.model, args))
        super().__init__(
            model=run.model,
            args=args,
            data_collator=data_collator or PreferenceCollator(),
            train_dataset=run.train_dataset,
            eval_dataset=run.eval_dataset,
            processing_class=processing_class or run.tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._launch = Launch.of(self.accelerator, show_progress=not args.disable_tqdm)
        check_launch(args, self._launch)
        ready_for_engine(self.model, self.accelerator)
        self._fit_dtype(self.model, self._launch.keeps_float32)
        make_ready(self.model, args, run.objective, self._launch)
        self.neftune_noise_alpha = None  # added by our scorer, as to each text alone
        # Losses are normalised over the optimiser step here, so nothing is left to scale.
        self.model_accepts_loss_kwargs = True
        self._run, self.objective, self.max_length = run, run.objective, run.max_length
        self.data_reports = run.data.reports
        self.card_details = CardDetails()
        self._set_up_reference(ref_model)
        self._set_up_steps()
        if data_collator is None:
            self.data_collator = self._collator()
        self._check_first_batch()
        compile_policy(self.model, args, self.accelerator)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(list(self._tag_names))
        reason = f" ({run.reason})" if run.reason else ""
        run.say(f"prefopt: loss {self.objective.name}{reason}, {self.scorer}")

    # Set-up ---------------------------------------------------------------------------------------

    def _set_up_reference(self, ref_model: Any) -> None:
        run = self._run
        self._reference = run.reference(self.args, self._launch)
        self._reference.choose(ref_model)
        self.scorer = self._reference.scorer
        check_passes(self.scorer, self._launch, run.max_length)
        if not self._reference.policy_is_checkpoint:
            self._reference.serve(*self._to_serve())
        self._reference.announce()
        if self._reference.moving is not None:
            self.add_callback(FollowPolicy(self._reference.moving, self.args))

    def _to_serve(self) -> list[Served]:
        """Return the rows whose reference is wanted: of a run shorter than an epoch, those seen."""
        dataset, kind = self.train_dataset, type(self)
        own = all(
            getattr(kind, name) is getattr(PreferenceTrainer, name)
            for name in ("_get_train_sampler", "get_train_dataloader")
        )
        only = None
        if dataset is not None and own and not self._reference.needs_all_rows:
            sampler = None if is_stream(dataset) else self._get_train_sampler(dataset)
            only = rows_seen(dataset, sampler, self.args, self._launch.processes)
        if only is not None and self._reference.references is not None:
            self._run.say(
                f"prefopt: reference: of {len(dataset):,} rows the {len(only):,} that this run sees"
            )
        return named_datasets(dataset, self.eval_dataset, only)

    @property
    def references(self) -> References | None:
        """Serves reference log-probs; None if no loss needs them."""
        return self._reference.references

    def _set_up_steps(self) -> None:
        self.load_balancing_loss = LoadBalancingLoss.of(self.model, self.args.router_aux_loss_coef)
        self._throughput = Throughput(self, self._launch.processes)
        self._score = BatchScorer(
            self.scorer,
            self.references,
            self.objective,
            self.load_balancing_loss,
            self.args.log_token_metrics,
            self.accelerator.autocast,
            self._noise if self.args.neftune_noise_alpha else None,
            self._throughput.clock,
        )
        self._statistics = StepStatistics(
            self.objective,
            self._score,
            self._launch.processes,
            progress=lambda: self.state.global_step / max(self.state.max_steps, 1),
            of_pairs=self.args.diagnostics,
            log_ratios=self.args.log_ratios,
        )
        if self.args.diagnostics:
            self.add_callback(DiagnosticsCallback(self._run.say))
        self._set_up_samples()
        self._evaluator = Evaluator(self._statistics)
        self._safety = Safety(self, self._statistics, self._launch, self._run)
        self._memory = MemoryWatch(self)
        for callback in (self._memory, self._throughput):
            self.add_callback(callback)
        if self.args.profile_steps:
            self.add_callback(
                ProfileSteps(self.args.profile_steps, self._launch.processes, self._run.say)
            )

    def _set_up_samples(self) -> None:
        if self.args.sample_prompts is not None and self._launch.is_sharded:
            raise ValueError(
                "sample_prompts needs all weights in one process, which sharded training (FSDP, "
                "ZeRO-3) does not keep; leave one of them out"
            )
        autocast, say = self.accelerator.autocast, self._run.say
        callbacks = self.callback_handler.callbacks
        sampled = sample_callback(self.args, self._run.tokenizer, autocast, say, lambda: callbacks)
        if sampled is not None:
            self.add_callback(sampled)

    def add_callback(self, callback: Any) -> None:
        """Add a callback; one of TRL's that generates is given the prompts of the rows as text.

        Args:
            callback: A ``TrainerCallback``, or its class.
        """
        give_prompts(callback, getattr(self, "processing_class", None))
        super().add_callback(callback)

    def _noise(self, batch: Batch) -> Noise:
        """Return the noise of a batch at this step, the same if it is scored twice."""
        numbers = (self.args.seed, self.state.global_step)
        return Noise.of(self.args.neftune_noise_alpha, numbers, batch.texts.examples)

    def _collator(self) -> PreferenceCollator:
        pad = self._run.tokenizer.pad_token_id
        return collator_of(self.objective, self.scorer, self.args, self._launch, pad)

    def _check_first_batch(self) -> None:
        if not self.args.check_first_batch or self.train_dataset is None:
            return
        first = islice(examples_of(self.train_dataset, False), self.args.train_batch_size)
        largest = probe_examples(self.scorer, list(first), self.accelerator.autocast)
        self._run.say(
            f"prefopt: first batch: log-probs equal the plain forward's to {largest:.1e} nats"
        )

    # Data -----------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(PREPARED_COLUMNS)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the rows; a random one of unpaired data mixes its labels evenly."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        mixed = mixed_labels(dataset, self.args)
        return super()._get_train_sampler(train_dataset) if mixed is None else mixed

    def get_train_dataloader(self) -> Any:
        """Return a loader over this process's share of each step of the training set."""
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset; there are only data to evaluate on")
        dataset, collate, sampler, sizes = self.train_dataset, self.data_collator, None, None
        if is_stream(dataset):
            collate = self._get_collator_with_removed_columns(collate, "training")
        else:
            dataset = self._remove_unused_columns(dataset, "training")
            sampler = self._get_train_sampler(dataset)
            shared = self.scorer.layout == "shared_prefix"
            sizes = row_tokens(dataset, shared, self.objective.needs_kl)
        processes, device = self._launch.processes, self.accelerator.device
        return training_loader(dataset, sampler, sizes, collate, self.args, processes, device)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return a loader over this process's rows of an evaluation set, raw or prepared."""
        dataset = asked_for(eval_dataset, self.eval_dataset)
        dataset = self._run.data.prepare(dataset, "eval")
        self._reference.serve(("eval", dataset))
        return evaluation_loader(dataset, self.data_collator, self.args, self._launch.processes)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return a loader over this process's rows of a test set."""
        return self.get_eval_dataloader(test_dataset)

    def _batches(self, inputs: Any) -> list[Batch]:
        return [batch.to(self.args.device, non_blocking=True) for batch in batches_of(inputs)]

    def _in_step(self, batches: list[Batch]) -> list[Batch]:
        """Return as many batches as every other process has, where they must score together."""
        if not self._launch.is_sharded or self.args.max_tokens_per_batch is None:
            return batches
        (nothing,) = self._collator().batches([])
        empty = nothing.to(self.args.device, non_blocking=True)
        return as_many_everywhere(batches, empty, self._launch.processes)

    # One step -------------------------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, as ``transformers.Trainer`` does.

        On a CPU denormal gradients count as zero, and memory is kept between steps.

        Args:
            resume_from_checkpoint: A checkpoint; True for the newest that is whole.
            *args: As in ``transformers.Trainer``.
            **kwargs: As in ``transformers.Trainer``.

        Raises:
            ValueError: If the checkpoint is broken, or of another loss or reference, or the
                reference has not scored the data and cannot be had again.
            NonFiniteError: If a loss, a gradient norm or a weight is; nothing of it was saved.
            TrainingMemoryError: If memory is too small for a step, naming the batch.
            CheckpointError: If a checkpoint cannot be written.
            TrainingInterrupted: A ``KeyboardInterrupt``, once a checkpoint was saved.
        """
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset; there are only data to evaluate on")
        checkpoint = self._safety.folder(resume_from_checkpoint)
        self._reference.begin(checkpoint, *self._to_serve())
        self._begin_counting = partial(self._safety.resume, checkpoint)
        self._begin_counting()
        folder = None if checkpoint is None else str(checkpoint)
        listening, told = self._safety.interrupt.listening(), self._memory.telling()
        with listening, told, set_up_for(self.args.device):
            trained = super().train(folder, *args, **kwargs)
        to_result(self.optimizer)
        self._safety.check("the trained model")
        # Of all steps, those before a checkpoint too.
        return trained._replace(training_loss=trained.metrics["train_loss"])

    def get_total_train_batch_size(self, args: Any) -> int:
        """Return how many rows make an optimiser step."""
        return steps_of(args, self._launch.processes).rows_of_step

    def set_initial_training_values(self, args: Any, dataloader: Any, *more: Any) -> Any:
        """Return what transformers does, but of the rows those that there are."""
        values = list(super().set_initial_training_values(args, dataloader, *more))
        if isinstance(dataloader.batch_sampler, StepShare):
            values[3] = dataloader.batch_sampler.rows_of(values[-1])
        return tuple(values)

    def _update_auto_batch_size(self, batch_size: int) -> None:
        """Begin anew with smaller forward passes, where memory was too small; steps stay."""
        if batch_size < self._train_batch_size:
            # transformers 5.15 does not keep where a resumed run began: that one is refused.
            began = getattr(self, "_initial_global_step", 0)
            check_unmoved(self.state.global_step - began, batch_size)
            self._run.say(f"prefopt: memory is too small: {batch_size} rows in a pass from now on")
            self._begin_counting()
        self.data_collator = in_parts(self.data_collator, batch_size)
        super()._update_auto_batch_size(batch_size)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """Return the micro-batches of an optimiser step, with what they must know of each other."""
        self.model.train()  # for what is scored ahead of the step
        to_training_point(self.optimizer)
        self._throughput.clock.start("data")
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            self._throughput.clock.stop()
            if self.state.global_step == 0:
                raise DataError("no row is left: all were set aside", dataset="train")
            return samples, None
        batches = [self._in_step(self._batches(inputs)) for inputs in samples]
        self._safety.guard.begin()
        self._throughput.clock.turn_to("forward")
        contexts = self._statistics.contexts([batch for part in batches for batch in part])
        remaining = iter(contexts)
        for inputs, part in zip(samples, batches, strict=True):
            inputs[BATCHES], inputs[CONTEXTS] = part, list(islice(remaining, len(part)))
        return samples, contexts[0].denominators.sum()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run forward and backward passes, part by part of rows that are too many for one batch.

        Activations are kept in CPU memory if asked for.
        """
        parts = zip(inputs[BATCHES], inputs[CONTEXTS], strict=True)
        *earlier, last = [{BATCHES: [batch], CONTEXTS: [context]} for batch, context in parts]
        loss = torch.zeros((), device=self.args.device)
        offloading = activations_on_cpu if self.args.activation_offloading else nullcontext
        for part in earlier:
            with self.accelerator.no_sync(model), offloading():
                loss += super().training_step(model, part, num_items_in_batch)
        with offloading():
            loss += super().training_step(model, last, num_items_in_batch)
        self._throughput.clock.turn_to("optimizer")
        self._safety.guard.add_loss(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self._safety.guard.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self._safety.guard.grad_norm

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the loss of its optimiser step.

        Summed over micro-batches and averaged over processes, as gradients are, the shares give the
        mean over all examples of the step. Called by hand, with what the collator returns, the
        micro-batch is a step of its own.
        """
        training = self.model.training
        batches = self._batches(inputs)
        self._throughput.clock.turn_to("forward")
        contexts = inputs.get(CONTEXTS) or self._statistics.contexts_alone(batches)
        loss, outputs = torch.zeros((), device=self.args.device), list[LossOutput]()
        for batch, context in zip(batches, contexts, strict=True):
            self._memory.batch = batch
            share, of_batch = self._statistics.loss(batch, context, model, training)
            loss, outputs = loss + share, outputs + of_batch
            if training:
                self._safety.progress.tokens += batch.texts.tokens.sequence_tokens
                self._throughput.add(batch)
        self._throughput.clock.turn_to("backward")
        if training:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    # Evaluation -----------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate exactly: every example once, means over examples, whatever the batches.

        KTO's KL estimate is that of the whole set. Unless only the loss is wanted, as ``evaluate``
        asks without ``compute_metrics``, the rewards of the rows are the predictions.
        """
        self.callback_handler.eval_dataloader = dataloader
        # DeepSpeed's models must be called through their wrapper; replicas need not.
        wrapped = self.model_wrapped if self._launch.is_sharded else None
        score = partial(self._score, wrapped=wrapped)
        if prediction_loss_only is None:
            prediction_loss_only = self.args.prediction_loss_only
        to_result(self.optimizer)
        with self.scorer.evaluating():
            found = self._evaluator.evaluate(
                self._evaluated(dataloader), score, self.compute_metrics, not prediction_loss_only
            )
        return found.output(metric_key_prefix)

    def _evaluated(self, dataloader: DataLoader[Any]) -> Iterator[Batch]:
        for inputs in dataloader:
            yield from self._in_step(self._batches(inputs))
            self.control = self.callback_handler.on_prediction_step(
                self.args, self.state, self.control
            )

    # Logging and saving ---------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the metrics of the optimiser steps since the last time."""
        if "loss" in logs or "train_loss" in logs:  # in the summary, what was not logged before
            logs |= self._statistics.means_of(self._statistics.metrics)
            if self.args.log_throughput:
                logs |= self._throughput.logged()
        if "loss" in logs:
            logs |= self._safety.progress.logged(logs["loss"])
        if "train_loss" in logs:
            logs |= self._safety.progress.summary()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as it is evaluated, so that ``from_pretrained`` loads it.

        Where checkpoints hold parts of the weights (FSDP's ``SHARDED_STATE_DICT``, ZeRO-3 without
        ``stage3_gather_16bit_weights_on_model_save``), a checkpoint gets no whole weights beside
        them, and any other folder does.
        """
        to_result(self.optimizer)
        folder = output_dir or self.args.output_dir
        if writes_parts(self._launch):
            if is_checkpoint(folder):
                self._save_records(folder)
            else:
                self._save(folder, self.accelerator.get_state_dict(self.model))
        with nullcontext() if is_checkpoint(folder) else gathering_on_save(self.deepspeed):
            super().save_model(output_dir, _internal_call)

    def _load_best_model(self) -> None:
        to_result(self.optimizer)  # which is not asked any more what it makes of these weights
        super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self._safety.saving(Path(output_dir or self.args.output_dir)):
            super()._save(output_dir, state_dict)
            self._save_records(output_dir or self.args.output_dir)

    def _save_records(self, output_dir: str) -> None:
        """Write what goes on with a run beside its weights."""
        if self.args.should_save:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_model_card(folder, self)
            self._reference.save(folder)
            self._statistics.save(folder)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
        **metadata: Any,
    ) -> None:
        """Write the model card into ``output_dir``; later ones, of uploads too, say the same.

        Args:
            model_name: Its headline; by default the name on the Hub, or that of the folder.
            dataset_name: On what was trained: ids on the Hub, folders or files.
            tags: Tags beside those of the run.
            **metadata: ``finetuned_from``, the base model's id; and entries of the card's metadata,
                such as ``license`` or ``language``.
        """
        self.card_details = self.card_details.updated(model_name, dataset_name, tags, **metadata)
        if self.is_world_process_zero():
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            write_model_card(self.args.output_dir, self)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        with self._safety.checkpoint(self._get_output_dir(trial)):
            super()._save_checkpoint(model, trial)
