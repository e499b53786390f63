"""What a run begins with: policy, tokenizer, losses, and data that go with them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

from datasets import Dataset
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import set_seed

from prefopt.config import PreferenceConfig
from prefopt.data import (
    DataError,
    DataReport,
    PreparedDataset,
    WeightedDataset,
    check_kind,
    check_kind_by_kind,
    prepare_dataset,
)
from prefopt.data.columns import check_dataset, check_datasets
from prefopt.data.degenerate import check_learnable
from prefopt.data.kinds import LEARNS_FROM, first_kinds
from prefopt.data.mixture import mix, names_of, read_mixture, rows_used
from prefopt.data.prepared import Ints, is_stream
from prefopt.data.resumable import check_same_tokens
from prefopt.objective import Objective
from prefopt.reference.references import Served
from prefopt.training.adapter import add_adapter, added_by_transformers, as_peft_model
from prefopt.training.launch import Launch
from prefopt.training.loaders import seed_of_data
from prefopt.training.loading import check_causal
from prefopt.training.model import (
    learned_positions,
    load_policy,
    loading_options,
    switch_off_dropout,
)
from prefopt.training.parallelism import check_launch_of_rows, check_not_in_parts
from prefopt.training.reference import ReferenceSetup, check_reference_asked_for
from prefopt.training.tokenizer import check_vocabulary, embedded_tokens, load_tokenizer
from prefopt.training.trackers import check_trackers
from prefopt.training.trust import named_in_run
from prefopt.training.unused import check_used
from prefopt.training.waiting import first_of_node


class DataPreparation:
    """Makes token ids of a run's data, and checks that its losses can learn from them.

    Args:
        tokenizer: That of the policy.
        objective: The losses.
        max_length: Most tokens of a prompt + completion; None for no limit.
        num_proc: Processes that prepare a dataset; None for this one.
        console: Where reports are printed.
        vocabulary: How many token ids the policy embeds.
        seed: Of the rows that a weight leaves out or takes once more.

    Attributes:
        reports: What preparation did to each dataset, by name.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        max_length: int | None,
        num_proc: int | None,
        console: Console,
        vocabulary: int | None = None,
        seed: int = 0,
    ) -> None:
        self.reports: dict[str, DataReport] = {}
        self._done = WeakSet[Any]()
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._objective = objective
        self._max_length = max_length
        self._num_proc = num_proc
        self._console = console
        self._seed = seed

    def prepare(self, dataset: Any, name: str) -> Any:
        """Return a dataset as token ids, its report printed; None for None.

        Raises:
            DataError: If rows are wrong, or do not go with the losses.
        """
        if isinstance(dataset, dict):
            return {its: self.prepare(part, its) for its, part in dataset.items()}
        if isinstance(dataset, list):
            before = set(self.reports)
            prepared = self._mix(read_mixture(dataset), name)
            self._check_learnable(name, *(set(self.reports) - before))
            self._done.add(prepared)
            return prepared
        if dataset is None or dataset in self._done:
            return dataset
        check_dataset(dataset, f"{name} data")
        made = self._prepare(dataset, name, self._check_kinds)
        self._done.add(made.dataset)
        self._report(made.report)
        self._check_learnable(name, *([] if made.report is None else [made.report.name]))
        return made.dataset

    def _prepare(
        self,
        dataset: Any,
        name: str,
        check_kinds: Callable[[frozenset[str]], None] | None = None,
        one_of_several: bool = False,
    ) -> PreparedDataset:
        takes_margins = {
            kind
            for term in self._objective.terms
            if "margins" in term.inputs
            for kind in LEARNS_FROM[term.loss.data_kind]
            if term.rows in (None, kind)
        }
        check_same_tokens(dataset, self._tokenizer, self._max_length, name)
        return prepare_dataset(
            dataset,
            self._tokenizer,
            max_length=self._max_length,
            num_proc=self._num_proc,
            needs_kl=self._objective.needs_kl,
            needs_margins=sorted(takes_margins),
            vocabulary=self._vocabulary,
            check_kinds=check_kinds,
            name=name,
            one_of_several=one_of_several,
        )

    def _mix(self, parts: list[WeightedDataset], name: str) -> Dataset:
        """Return the rows of several datasets as one, each prepared and reported by itself."""
        names = names_of(parts, name)
        prepared = [
            self._prepare(part.dataset, its, one_of_several=len(parts) > 1)
            for its, part in zip(names, parts, strict=True)
        ]
        try:
            self._check_kinds(frozenset[str]().union(*(made.kinds for made in prepared)))
        except DataError as error:
            kinds = [" and ".join(sorted(made.kinds)) for made in prepared]
            found = [f"{its} is {kind}" for its, kind in zip(names, kinds, strict=True)]
            raise DataError(f"{error.problem} Of the datasets, {', '.join(found)}.") from None
        chosen = []
        for place, (its, made) in enumerate(zip(names, prepared, strict=True)):
            weight = parts[place].weight
            try:
                used = rows_used(len(made.dataset), weight, (self._seed, place))
            except DataError as error:
                raise error.within(its) from None
            assert made.report is not None  # only streams have none
            self._report(replace(made.report, weight=weight, used=len(used)))
            chosen.append((made.dataset, used))
        mixed = mix(chosen)
        if len(parts) > 1:
            whole = f"{name} data: {len(mixed):,} rows of {len(parts)} datasets"
            self._console.print(whole, markup=False)
        return mixed

    def _report(self, report: DataReport | None) -> None:
        if report is not None:
            self.reports[report.name] = report
            self._console.print(report.render(), markup=False)

    def _check_learnable(self, name: str, *names: str) -> None:
        """Check the data that are trained on, by their reports; streams have none."""
        if name == "train" and names:
            labels = any(term.loss.data_kind == "unpaired" for term in self._objective.terms)
            check_learnable([self.reports[its] for its in names], name, labels)

    def _check_kinds(self, kinds: frozenset[str]) -> None:
        if self._objective.by_kind:
            check_kind_by_kind(kinds, self._objective.kinds_by_rows)
        else:
            check_kind(kinds, self._objective.data_kinds)


@dataclass(frozen=True)
class Run:
    """A run that is ready to be launched.

    Attributes:
        model: The policy, with its adapter.
        tokenizer: Its tokenizer.
        objective: The losses.
        max_length: Tokens of prompt + completion kept; no more than the model has positions.
        data: Prepares datasets.
        train_dataset: Prepared rows, or None.
        eval_dataset: Prepared rows, a dictionary of such, or None.
        console: Prints in the main process.
        named: Models that the user named; code that comes with others is never run.
        reason: Why these losses, where that is not plain.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    max_length: int | None
    data: DataPreparation
    train_dataset: Any
    eval_dataset: Any
    console: Console
    named: frozenset[str] = frozenset()
    reason: str = ""

    def reference(self, args: PreferenceConfig, launch: Launch) -> ReferenceSetup:
        """Return what chooses the reference, once the model is where ``launch`` computes.

        Args:
            args: Those of the run.
            launch: How it is launched.
        """
        return ReferenceSetup(
            self.model,
            self.tokenizer,
            args,
            self.objective,
            launch,
            self.say,
            self.max_length,
            self.named,
        )

    def say(self, text: str | None) -> None:
        """Print a line in the main process; None for nothing."""
        if text is not None:
            self.console.print(text, markup=False)


def named_datasets(train_dataset: Any, eval_dataset: Any, only: Ints | None = None) -> list[Served]:
    """Return datasets, each with its name; an evaluation set may be called "train" too.

    Args:
        train_dataset: To train on; None for none.
        eval_dataset: One, several by name, or None.
        only: Numbers of the rows that training will see; None for all.
    """
    evals = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    named = [Served(name, dataset) for name, dataset in evals.items()]
    return [Served("train", train_dataset, only), *named]


def prepare_run(
    model: Any,
    args: PreferenceConfig,
    ref_model: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    processing_class: Any = None,
    peft_config: Any = None,
) -> Run:
    """Load and check what a run is made of; the arguments are those of ``PreferenceTrainer``.

    How models are quantised that are loaded by name is one of ``model_init_kwargs``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If losses, options, data and model do not fit each other.
    """
    _check_arguments(model, ref_model, args, train_dataset, eval_dataset)
    check_used(args)
    check_trackers(args)
    check_launch_of_rows(args)
    set_seed(args.seed)  # adapters start from random weights
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not args.should_log)
    name = model if isinstance(model, str) else None
    named = named_in_run(model, ref_model)
    if loading_options(args)["trust_remote_code"]:
        names = ", ".join(sorted(named)) or "none: no model is named"
        console.print(f"prefopt: code may run that comes with what is named: {names}", markup=False)
    model = load_policy(model, args, peft_config)
    check_not_in_parts(model)
    tokenizer = load_tokenizer(processing_class, model, args, name)
    check_vocabulary(tokenizer, model)
    max_length = _fit_length(args.max_length, learned_positions(model), console)
    model = add_adapter(_in_peft(model, peft_config, console), peft_config, args)
    if args.disable_dropout:
        _say_lost_dropout(model, console)
        switch_off_dropout(model)
    kinds = first_kinds(train_dataset, eval_dataset)
    objective, reason = args.objective_for(kinds), args.reason_for(kinds)
    check_reference_asked_for(args, objective, ref_model)
    seed = seed_of_data(args)
    vocabulary = embedded_tokens(model)
    data = DataPreparation(
        tokenizer, objective, max_length, args.dataset_num_proc, console, vocabulary, seed
    )
    with first_of_node(args.local_process_index == 0):
        train_dataset = data.prepare(train_dataset, "train")
        eval_dataset = data.prepare(eval_dataset, "eval")
    _check_full_batches(args, train_dataset)
    data_of_run = (data, train_dataset, eval_dataset)
    return Run(model, tokenizer, objective, max_length, *data_of_run, console, named, reason)


def check_hooks(
    data_collator: Any = None,
    compute_metrics: Any = None,
    callbacks: Any = None,
    optimizers: Any = (None, None),
) -> None:
    """Check what transformers would call late, and complain of in its own words.

    Raises:
        TypeError: If one is of the wrong type.
    """
    for name, hook in {"data_collator": data_collator, "compute_metrics": compute_metrics}.items():
        if hook is not None and not callable(hook):
            raise TypeError(f"{name} must be a function, got {hook!r}")
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list of TrainerCallback, got {callbacks!r}")
    for callback in callbacks or ():
        of_class = callback if isinstance(callback, type) else type(callback)
        if not issubclass(of_class, TrainerCallback):
            raise TypeError(f"callbacks must be a list of TrainerCallback, and one is {callback!r}")
    is_pair = isinstance(optimizers, list | tuple) and len(optimizers) == 2
    if not is_pair or any(one is not None and not hasattr(one, "step") for one in optimizers):
        raise TypeError(
            f"optimizers must be a pair, an optimiser and a schedule (or None), got {optimizers!r}"
        )


def _check_arguments(
    model: Any, ref_model: Any, args: Any, train_dataset: Any, eval_dataset: Any
) -> None:
    if not isinstance(args, PreferenceConfig):
        raise TypeError(
            f"args must be a PreferenceConfig, got {type(args).__name__}; PreferenceConfig takes "
            "the fields of transformers.TrainingArguments and of TRL's configurations, so make one "
            "with the same arguments instead"
        )
    if isinstance(ref_model, nn.Module) and ref_model is model:
        raise ValueError(
            "model and ref_model are the same object, so the reference would move with the policy; "
            "leave ref_model out: the reference is then the policy as it is given"
        )
    check_datasets(train_dataset, eval_dataset)
    if not isinstance(ref_model, str | nn.Module | None):
        raise TypeError(
            f"ref_model must be an id, a path or a model, got {type(ref_model).__name__}"
        )
    if train_dataset is not None and is_stream(train_dataset) and args.max_steps < 1:
        raise ValueError("a stream does not tell its length: give max_steps")
    if eval_dataset is None and args.eval_strategy != "no":
        raise ValueError(
            f"eval_strategy={str(args.eval_strategy.value)!r} needs an eval_dataset; without one, "
            "leave it out"
        )
    if ref_model is not None:
        check_causal(ref_model, loading_options(args), "ref_model")
    if isinstance(ref_model, nn.Module):
        check_not_in_parts(ref_model, "ref_model")


def _check_full_batches(args: PreferenceConfig, train_dataset: Any) -> None:
    """Raise where no batch is full, and those that are not are dropped."""
    if train_dataset is None or is_stream(train_dataset) or not args.dataloader_drop_last:
        return
    rows, batch = len(train_dataset), args.train_batch_size * args.world_size
    if rows < batch:
        raise ValueError(
            f"dataloader_drop_last=True drops all {rows} rows: a batch takes {batch}; leave it "
            "out, or lower per_device_train_batch_size"
        )


def _in_peft(model: Any, peft_config: Any, console: Console) -> Any:
    """Return the model with adapters that transformers added, if any, in peft's wrapper."""
    names = added_by_transformers(model)
    if not names or peft_config is not None:  # which is refused
        return model
    console.print(
        f"prefopt: the adapter of the model ({', '.join(names)}), which transformers added, is "
        "trained further in a peft.PeftModel",
        markup=False,
    )
    return as_peft_model(model)


def _say_lost_dropout(model: Any, console: Console) -> None:
    """Say that an adapter's dropout is among what is switched off: it may have been asked for."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    dropout = max((getattr(config, "lora_dropout", 0.0) or 0.0 for config in configs), default=0.0)
    if dropout:
        console.print(
            f"prefopt: lora_dropout={dropout:g} has no effect: disable_dropout=True, the default, "
            "sets every dropout to 0; give disable_dropout=False to keep it"
        )


def _fit_length(max_length: int | None, positions: int | None, console: Console) -> int | None:
    """Return max_length, or the number of positions the model has if that is less."""
    if positions is None or (max_length is not None and max_length <= positions):
        return max_length
    console.print(
        f"prefopt: max_length {max_length} -> {positions}: the model has no more positions"
    )
    return positions
