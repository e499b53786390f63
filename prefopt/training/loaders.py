"""Data loaders that give each process its share of each step, and no row twice."""

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from transformers.trainer_utils import seed_worker

from prefopt.config import PreferenceConfig
from prefopt.data import DataError
from prefopt.data.prepared import Ints, is_stream
from prefopt.data.sampling import MixedLabels, unpaired_labels
from prefopt.data.steps import EvaluationShare, Steps, StepShare, StepStream
from prefopt.reference.processes import Processes

Collate = Callable[[Any], Any]


def steps_of(args: PreferenceConfig, processes: Processes) -> Steps:
    """Return how the optimiser steps of a run are cut."""
    rows = args.train_batch_size
    if args.accelerator_config.split_batches:
        rows = -(-rows // processes.count)  # the batch size is that of all processes
    return Steps(rows, processes.count, args.gradient_accumulation_steps)


def training_loader(
    dataset: Any,
    sampler: Sampler[int] | None,
    sizes: Ints | None,
    collate: Collate,
    args: PreferenceConfig,
    processes: Processes,
    device: torch.device,
) -> Any:
    """Return a loader of the batches of this process, as accelerate prepares one.

    Args:
        dataset: Prepared rows.
        sampler: Their order; None for a stream.
        sizes: Tokens of each row; None to count rows.
        collate: Makes a batch of rows.
        args: Those of the run.
        processes: Those that share the steps.
        device: Where batches go.

    Raises:
        DataError: If ``dataloader_drop_last`` leaves nothing.
    """
    steps, drop_last = steps_of(args, processes), args.dataloader_drop_last
    options: dict[str, Any] = {}
    if is_stream(dataset):
        dataset = StepStream(dataset, steps, processes.rank, drop_last=drop_last)
        options["batch_size"] = None
    else:
        assert sampler is not None  # map-style data have an order
        share = StepShare(_seeded(sampler, args), sizes, steps, processes.rank, drop_last)
        if not len(share):
            raise DataError(
                f"dataloader_drop_last=True leaves no batch: {len(dataset):,} rows are fewer than "
                f"the {steps.rows_of_pass:,} of one pass of all processes",
                dataset="train",
            )
        options["batch_sampler"] = share
    loader = DataLoader(
        dataset,
        collate_fn=collate,
        worker_init_fn=partial(
            seed_worker, num_workers=args.dataloader_num_workers, rank=processes.rank
        ),
        **options,
        **_worker_options(args),
    )
    # The share is taken already, so that for accelerate there is one process.
    return prepare_data_loader(
        loader,
        device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
        even_batches=False,
        non_blocking=args.accelerator_config.non_blocking,
    )


def rows_seen(
    dataset: Any, sampler: Sampler[int] | None, args: PreferenceConfig, processes: Processes
) -> Ints | None:
    """Return the numbers of the rows that a run shorter than an epoch sees, in their order.

    None where it sees all, or an order that does not follow from seed and epoch.

    Args:
        dataset: Prepared rows, or a stream.
        sampler: Their order, not used otherwise.
        args: Those of the run.
        processes: Those that share the steps.
    """
    if is_stream(dataset) or sampler is None:
        return None
    steps, rows = steps_of(args, processes), len(dataset)
    share = args.max_steps * steps.rows_of_step if args.max_steps > 0 else None
    if share is None and args.num_train_epochs < 1:
        of_epoch = -(-rows // steps.rows_of_step)
        share = math.ceil(args.num_train_epochs * of_epoch) * steps.rows_of_step
    seeded = _seeded(sampler, args)
    known = isinstance(seeded, SeedableRandomSampler | MixedLabels | SequentialSampler)
    if share is None or share >= rows or not known:
        return None
    return np.fromiter(islice(seeded, share), dtype=np.int64)


def evaluation_loader(
    dataset: Any, collate: Collate, args: PreferenceConfig, processes: Processes
) -> DataLoader[Any]:
    """Return a loader of every so many of the rows, in as many batches in every process."""
    steps = Steps(args.eval_batch_size, processes.count)
    options: dict[str, Any] = {}
    if is_stream(dataset):
        dataset = StepStream(dataset, steps, processes.rank, in_turn=True)
        options["batch_size"] = None
    else:
        options["batch_sampler"] = EvaluationShare(len(dataset), steps, processes.rank)
    return DataLoader(dataset, collate_fn=collate, **options, **_worker_options(args))


def _worker_options(args: PreferenceConfig) -> dict[str, Any]:
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and torch.accelerator.is_available(),
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        **{
            name: getattr(args, f"dataloader_{name}")
            for name in ("multiprocessing_context", "in_order")
            if hasattr(args, f"dataloader_{name}")  # not in each version of transformers
        },
    }


def mixed_labels(dataset: Any, args: PreferenceConfig) -> MixedLabels | None:
    """Return a random order that mixes the labels of unpaired data evenly; None for other orders.

    Args:
        dataset: Prepared rows, or a stream.
        args: Those of the run.
    """
    if args.train_sampling_strategy != "random" or not isinstance(dataset, Dataset):
        return None
    labels = unpaired_labels(dataset)
    return None if labels is None else MixedLabels(labels, seed_of_data(args))


def seed_of_data(args: PreferenceConfig) -> int:
    """Return from what the order of rows, and the choice of those that a weight takes, follow."""
    seed: int = args.seed if args.data_seed is None else args.data_seed
    return seed


def _seeded(sampler: Sampler[int], args: PreferenceConfig) -> Sampler[int]:
    """Return a random order as one that follows from seed and epoch, in each process alike."""
    if type(sampler) is not RandomSampler:
        return sampler
    seeded: Sampler[int] = SeedableRandomSampler(sampler.data_source, data_seed=seed_of_data(args))
    return seeded


def asked_for(dataset: Any, known: Any) -> Any:
    """Return the data that are to be evaluated on.

    Args:
        dataset: Data, the name of some, or None for those that are known.
        known: The data of the run; a dictionary if they have names.

    Raises:
        ValueError: If there are none, or none of this name.
    """
    if isinstance(dataset, str):
        named = known if isinstance(known, dict) else {}
        if dataset not in named:
            names = ", ".join(named) or "none; give eval_dataset as a dictionary"
            raise ValueError(f"there is no eval_dataset {dataset!r}; there is {names}")
        return named[dataset]
    dataset = known if dataset is None else dataset
    if dataset is None:
        raise ValueError("evaluation needs an eval_dataset")
    return dataset
