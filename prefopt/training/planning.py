"""Measure a few steps of a run on this machine, and say what the whole of it will need.

The rows are prepared as the run would prepare them, and cut into the batches that it would see. A
few of these, the largest among them, are trained on, with a model that is then thrown away. The
store of reference log-probs is only looked at.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch import nn
from torch.utils.data import SequentialSampler

from prefopt.config import PreferenceConfig
from prefopt.data.prepared import Ints, is_stream
from prefopt.data.steps import StepShare, row_tokens
from prefopt.engine.flops import Weights, work_of
from prefopt.engine.probe import inside_peft
from prefopt.reference.fill import CompletionIndex
from prefopt.reference.processes import Processes
from prefopt.reference.references import References
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME, FileStore, default_folder
from prefopt.training.interrupt import TrainingInterrupted
from prefopt.training.loaders import mixed_labels, seed_of_data, steps_of
from prefopt.training.needs import Line, Memory, Model, Times, seconds_of_steps
from prefopt.training.run import Run, prepare_run
from prefopt.training.throughput import peak_memory
from prefopt.training.trainer import PreferenceTrainer
from prefopt.training.trials import Batch, Trials, tokens_at_once, trial_arguments, tried_batches

# Tokens of rows whose reference log-probs are computed to see how long it takes.
_REFERENCE_TOKENS = 4096


@dataclass(frozen=True)
class LargestRow:
    """The row that takes most.

    Attributes:
        number: In the data as they were given, from 0.
        dataset: Which of several datasets it is of; None if there is one.
        tokens: That it takes in a pass.
        prompt: Tokens of its prompt.
        completions: Tokens of each of its completions.
    """

    number: int
    dataset: str | None
    tokens: int
    prompt: int
    completions: tuple[int, ...]


@dataclass(frozen=True)
class RunPlan:
    """What a run will need.

    Attributes:
        loss: Name of its losses.
        scorer: How the policy is scored, for people.
        sizes: Tokens that each row takes; (n,).
        largest_row: The row that takes most.
        rows_of_pass: Rows of a forward and backward pass.
        passes_of_step: Passes of an optimiser step.
        steps: Optimiser steps.
        epoch_tokens: Tokens of an epoch.
        largest_batch: Tokens of the largest pass.
        is_cut: Whether batches are cut up into passes of so many tokens (max_tokens_per_batch).
        seconds_per_step: Mean over the run.
        times: Where the time goes.
        unknown: Reference completions that the store lacks, and all of them; None without a store.
        memory: Where the memory of a step goes.
        peak_bytes: The most that was in use here, the largest batch included.
        model: How memory changes with the options of training.
        flops: Useful operations of all steps.
        trained: Weights that are trained.
        parameters: All weights.
        is_adapter: Whether an adapter is trained.
        is_quantised: Whether the model is quantised.
        checkpointing: Whether layers are computed again in the backward pass.
        on_cpu: Whether it was measured on a CPU.
        measured_steps: Steps that were measured.
    """

    loss: str
    scorer: str
    sizes: Ints
    largest_row: LargestRow
    rows_of_pass: int
    passes_of_step: int
    steps: int
    epoch_tokens: int
    largest_batch: int
    is_cut: bool
    seconds_per_step: float
    times: Times
    unknown: tuple[int, int] | None
    memory: Memory
    peak_bytes: int
    model: Model
    flops: float
    trained: int
    parameters: int
    is_adapter: bool
    is_quantised: bool
    checkpointing: bool
    on_cpu: bool
    measured_steps: int


def plan_run(
    arguments: dict[str, Any],
    train_dataset: Any,
    eval_dataset: Any = None,
    *,
    before: float = 0.0,
    most_seconds: float = 30.0,
) -> RunPlan:
    """Return what a run will need, measured with a few steps of it that are thrown away.

    Args:
        arguments: ``model``, ``args`` and ``peft_config``, as ``PreferenceTrainer`` takes them.
        train_dataset: Rows to train on, in any format.
        eval_dataset: Rows to evaluate on; None for none.
        before: Seconds that the command took until now.
        most_seconds: Of the steps that are measured, once the least number is done.

    Raises:
        ValueError: If the run could not begin, the rows are a stream, or there are several
            processes.
    """
    args: PreferenceConfig = arguments["args"]
    if is_stream(train_dataset):
        raise ValueError("a stream does not tell its rows: plan with the data themselves")
    if args.world_size > 1:
        raise ValueError("a plan is of one process: start it without a launcher")
    start = perf_counter()
    run = prepare_run(train_dataset=train_dataset, eval_dataset=eval_dataset, **arguments)
    # What the trial says of itself (its store, its steps) is not of the run.
    quiet = redirect_stdout(StringIO()), redirect_stderr(StringIO())
    with TemporaryDirectory(prefix="prefopt-plan-") as folder, quiet[0], quiet[1]:
        planned = _Planned(run, args, Path(folder), before + perf_counter() - start)
        try:
            return planned.measured(most_seconds)
        except TrainingInterrupted as stopped:  # of which nothing is kept to go on from
            raise KeyboardInterrupt from stopped


class _Planned:
    """A run that is measured in a folder of its own.

    Args:
        run: It, ready to be launched.
        args: Its arguments.
        folder: Where all is written.
        start: Seconds until now.
    """

    def __init__(self, run: Run, args: PreferenceConfig, folder: Path, start: float) -> None:
        self._run, self._args, self._folder, self._start = run, args, folder, start
        self._rows: Dataset = run.train_dataset
        with_kl = run.objective.needs_kl
        self._sizes = row_tokens(self._rows, args.layout != "padded", with_kl)
        begun = perf_counter()
        self._trainer = self._made()
        self._start += perf_counter() - begun
        if self._trainer.scorer.layout == "padded":
            self._sizes = row_tokens(self._rows, False, with_kl)
        self._batches = epoch_batches(self._rows, self._sizes, args)

    def _made(self) -> PreferenceTrainer:
        """Return a trainer of the run that knows one row only, the smallest."""
        smallest = self._rows.select([int(self._sizes.argmin())])
        args = trial_arguments(self._args, self._folder)
        return PreferenceTrainer(
            self._run.model,
            args=args,
            eval_dataset=smallest,
            processing_class=self._run.tokenizer,
        )

    def measured(self, most_seconds: float) -> RunPlan:
        trainer, args = self._trainer, self._args
        chosen = tried_batches(self._batches, self._sizes)
        rate = self._reference_rate()
        most_tokens = args.max_tokens_per_batch
        trials = Trials(trainer, self._rows, self._sizes, chosen, most_tokens)
        passes, optimizer, once = trials.timed(most_seconds)
        peak = peak_memory(args.device)  # before a profiler takes some
        step_memory = trials.peaks()
        saving = self._saving()
        epoch = [float(self._sizes[batch].sum()) for batch in self._batches]
        of_step = steps_of(args, Processes()).passes
        steps = steps_of_run(args, len(epoch), of_step)
        seconds = seconds_of_steps(passes, optimizer, epoch, of_step, steps)
        unknown = self._unknown()
        times = Times(
            start=self._start + once,
            reference=rate * float(self._sizes.sum()) * (unknown[0] / unknown[1] if unknown else 1),
            steps=seconds,
            evaluations=self._evaluations(steps, trials.forward),
            saving=saving(steps),
        )
        model, weights = trainer.model, Weights.of(trainer.model)
        largest = max(tokens_at_once(its, self._sizes, most_tokens) for its in self._batches)
        memory = memory_of(trainer, step_memory, peak, largest)
        return RunPlan(
            loss=trainer.objective.name,
            scorer=str(trainer.scorer),
            sizes=self._sizes,
            largest_row=largest_row(self._rows, self._sizes),
            rows_of_pass=args.train_batch_size,
            passes_of_step=of_step,
            steps=steps,
            epoch_tokens=int(self._sizes.sum()),
            largest_batch=largest,
            is_cut=most_tokens is not None,
            seconds_per_step=seconds / max(steps, 1),
            times=times,
            unknown=unknown,
            memory=memory,
            peak_bytes=peak,
            model=model_facts(model),
            flops=self._flops(weights, chosen[0]) * steps * of_step * float(np.mean(epoch)),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            parameters=model.num_parameters(),
            is_adapter=hasattr(model, "peft_config"),
            is_quantised=bool(getattr(model, "is_quantized", False)),
            checkpointing=bool(args.gradient_checkpointing),
            on_cpu=args.device.type == "cpu",
            measured_steps=trials.steps,
        )

    def _reference_rate(self) -> float:
        """Return the seconds of a token's reference log-probs, before training; 0 without them."""
        references = self._trainer.references
        if references is None or references.store is None:
            return 0.0
        rows = spread_rows(self._sizes, _REFERENCE_TOKENS)
        begun = perf_counter()
        references.prepare(("a sample", self._rows.select(rows)))
        return (perf_counter() - begun) / float(self._sizes[rows].sum())

    def _unknown(self) -> tuple[int, int] | None:
        references = self._trainer.references
        if references is None or references.store is None:
            return None
        given = self._args.reference_cache_dir
        folder = Path(given) if given else default_folder()
        wanted = CompletionIndex.of(self._rows, self._run.objective.needs_kl)
        return lacking(wanted, references, folder), len(wanted)

    def _saving(self) -> Callable[[int], float]:
        """Save the model and a checkpoint, and return what a run of so many steps takes for it."""
        trainer, args = self._trainer, self._args
        begun = perf_counter()
        trainer.save_model(str(self._folder / "model"))
        model = perf_counter() - begun
        strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
        if strategy == "no":
            return lambda steps: model
        begun = perf_counter()
        trainer._save_checkpoint(trainer.model)
        checkpoint = perf_counter() - begun
        epochs = args.num_train_epochs
        return lambda steps: (
            model
            + checkpoint
            * times_of(strategy, args.save_steps, steps, epochs, at_end=strategy == "steps")
        )

    def _evaluations(self, steps: int, forward: float) -> float:
        evals = self._run.eval_dataset
        if evals is None:
            return 0.0
        shared, with_kl = self._trainer.scorer.layout != "padded", self._run.objective.needs_kl
        parts = evals.values() if isinstance(evals, dict) else [evals]
        tokens = sum(int(row_tokens(part, shared, with_kl).sum()) for part in parts)
        args = self._args
        strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
        every = args.eval_steps or args.logging_steps
        count = times_of(strategy, every, steps, args.num_train_epochs)
        return (count + 1) * tokens * forward  # once more at the end

    def _flops(self, weights: Weights, batch: Batch) -> float:
        """Return the useful operations of a token that is trained on."""
        made = self._trainer.data_collator.batches(list(self._rows.select(batch)))
        flops = sum(weights.training(work_of(its.texts.tokens, its.texts.examples)) for its in made)
        return flops / float(self._sizes[batch].sum())


def epoch_batches(rows: Dataset, sizes: Ints, args: PreferenceConfig) -> list[Batch]:
    """Return the rows of each pass of the first epoch, by their numbers."""
    sampler = mixed_labels(rows, args)
    if sampler is None and args.train_sampling_strategy == "random":
        sampler = SeedableRandomSampler(rows, data_seed=seed_of_data(args))
    order = SequentialSampler(rows) if sampler is None else sampler
    steps = steps_of(args, Processes())
    return list(StepShare(order, sizes, steps, 0, bool(args.dataloader_drop_last)))


def spread_rows(sizes: Ints, tokens: int) -> list[int]:
    """Return rows from everywhere in the data, with about so many tokens together; one at least."""
    count = max(1, min(len(sizes), round(tokens / max(float(sizes.mean()), 1.0))))
    places = np.linspace(0, len(sizes) - 1, count).round()
    return sorted({int(place) for place in places})


def steps_of_run(args: PreferenceConfig, passes: int, passes_of_step: int) -> int:
    """Return how many optimiser steps a run takes, of so many passes an epoch."""
    if args.max_steps > 0:
        return int(args.max_steps)
    return int(np.ceil(args.num_train_epochs * -(-passes // passes_of_step)))


def times_of(
    strategy: str, every: float | None, steps: int, epochs: float, at_end: bool = False
) -> int:
    """Return how often something is done in a run.

    Args:
        strategy: ``"steps"``, ``"epoch"``, ``"best"`` (as often as can be told: once) or ``"no"``.
        every: Optimiser steps between two times; below 1, a share of all.
        steps: Optimiser steps of the run.
        epochs: Its epochs.
        at_end: Whether the last step counts too.

    Examples:
        >>> [times_of("steps", 500, n, 1, at_end=True) for n in (6, 500, 1200)]
        [1, 1, 3]
        >>> times_of("steps", 0.25, 40, 1), times_of("epoch", None, 9, 3), times_of("no", 1, 9, 1)
        (4, 3, 0)
    """
    if strategy == "steps":
        apart = max(1, int(np.ceil(every * steps)) if every and every < 1 else int(every or 1))
        return -(-steps // apart) if at_end else steps // apart
    return {"epoch": int(np.ceil(epochs)), "best": 1}.get(strategy, 0)


def lacking(wanted: CompletionIndex, references: References, folder: Path) -> int:
    """Return how many completions the store in a folder lacks; nothing is written there."""
    path = folder / FILE_NAME
    if references.fingerprint is None or not path.is_file():
        return len(wanted)
    digest, facts = references.fingerprint
    try:
        database = Database(path, readonly=True)
        missing = wanted.missing(FileStore(database, digest, facts, {}), usable=False)
        database.close()
    except (OSError, RuntimeError, ValueError, sqlite3.Error):  # damaged, or of a later version
        return len(wanted)
    return int(missing.sum())


def largest_row(rows: Dataset, sizes: Ints) -> LargestRow:
    """Return the row that takes most."""
    place = int(sizes.argmax())
    row = rows[place]
    return LargestRow(
        number=int(row.get("prefopt_row", place)),
        dataset=row.get("prefopt_dataset"),
        tokens=int(sizes[place]),
        prompt=len(row["prompt_ids"]),
        completions=tuple(len(ids) for ids in row["completion_ids"]),
    )


def memory_of(trainer: Any, step: Line, peak: int, largest: float) -> Memory:
    """Return where the memory of a run goes.

    Args:
        trainer: After some steps.
        step: What a step allocates beside weights and optimiser, by its tokens; bytes.
        peak: The most that was in use; bytes.
        largest: Tokens of the largest batch.
    """
    model = trainer.model
    tensors = [*model.parameters(), *model.buffers()]
    trained = [p for p in model.parameters() if p.requires_grad]
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    kept = [
        value
        for state in inner.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    known = Memory(_bytes(tensors), _bytes(trained), _bytes(kept), step)
    beside = max(peak - known.of(largest), 0.0)
    return Memory(known.weights, known.gradients, known.optimizer, step, beside)


def _bytes(tensors: Sequence[torch.Tensor]) -> float:
    """Return what some tensors take, memory that several share once."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return float(sum(sizes.values()))


def model_facts(model: Any) -> Model:
    """Return what decides how a model's memory changes with the options of training."""
    inner = inside_peft(model)
    config = inner.config.get_text_config()
    head, is_adapter = inner.get_output_embeddings(), inner is not model
    linear = [
        module
        for module in inner.modules()
        if isinstance(module, nn.Linear)
        and module is not head
        # Under an adapter, what is trained is the adapter.
        and not (is_adapter and module.weight.requires_grad)
    ]
    size = sum(module.in_features * module.out_features for module in linear)
    parameter = next(inner.parameters())
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    return Model(
        layers=int(getattr(config, "num_hidden_layers", 0) or 0),
        hidden=int(getattr(config, "hidden_size", 0) or 0),
        bytes_per_number=dtype.itemsize,
        linear=size,
        linear_bytes=_bytes([module.weight for module in linear]),
        adapter=lora_weights(inner, linear),
    )


def lora_weights(model: nn.Module, linear: Sequence[nn.Linear], rank: int = 16) -> int:
    """Return the weights of an adapter as ``--use_peft`` makes it, in peft's choice of layers."""
    names = _lora_targets(str(getattr(model.config, "model_type", "")))
    by_name = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    chosen = [its for its in linear if by_name.get(id(its)) in names] if names else list(linear)
    return sum(rank * (its.in_features + its.out_features) for its in chosen)


def _lora_targets(model_type: str) -> Sequence[str]:
    try:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    except ImportError:
        return ()
    return list(TARGETS.get(model_type, ()))
