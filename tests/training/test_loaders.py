"""Each process is given its share of each step, and no row twice."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import skip_first_batches
from torch.utils.data import RandomSampler

from prefopt.data import DataError
from prefopt.data.steps import Steps
from prefopt.reference.processes import Processes
from prefopt.training.loaders import evaluation_loader, steps_of, training_loader
from tests.models import tiny_rows
from tests.runs import config, steps, trainer


def processes(count, rank=0):
    return Processes(rank, count, gather=lambda value: [value] * count)


def loaded(tmp_path, rank=0, count=2, rows=13, stream=False, epoch=0, skip=0, **options):
    """Return the numbers of the rows of each batch of a process."""
    data = tiny_rows(rows).add_column("row", list(range(rows)))
    data = data.to_iterable_dataset() if stream else data
    args = config(tmp_path, per_device_train_batch_size=2, **options)
    sampler = None if stream else RandomSampler(data)
    data = data.map(lambda row: row | {"prompt_ids": [1], "completion_ids": [[2], [3]]})
    collate = lambda its: SimpleNamespace(rows=[row["row"] for row in its])  # noqa: E731
    where = (args, processes(count, rank), torch.device("cpu"))
    loader = training_loader(data, sampler, None, collate, *where)
    loader = skip_first_batches(loader, skip) if skip else loader
    loader.set_epoch(epoch)
    return [batch.rows for batch in loader]


@pytest.mark.parametrize("stream", [False, True])
def test_all_processes_together_load_each_row_once_in_an_epoch(tmp_path, stream):
    batches = [loaded(tmp_path, rank, stream=stream) for rank in range(2)]
    assert [len(its) for its in batches] == [4, 4]
    together = [row for its in batches for batch in its for row in batch]
    assert sorted(together) == list(range(13))


def test_the_order_is_that_of_one_process_in_each_epoch(tmp_path):
    for epoch in (0, 3):
        one = loaded(tmp_path, 0, 1, epoch=epoch, gradient_accumulation_steps=2)
        torch.manual_seed(5)  # what else is random does not matter
        two = [loaded(tmp_path, rank, 2, epoch=epoch) for rank in range(2)]
        for number in range(3):
            together = one[2 * number] + one[2 * number + 1]
            assert sorted(two[0][number] + two[1][number]) == sorted(together)
    assert loaded(tmp_path, epoch=0) != loaded(tmp_path, epoch=1)
    assert loaded(tmp_path) != loaded(tmp_path, data_seed=7)
    assert loaded(tmp_path, data_seed=7) == loaded(tmp_path, data_seed=7, seed=9)


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_goes_on_after_the_batches_that_it_had(tmp_path, stream):
    for rank in range(2):
        whole = loaded(tmp_path, rank, stream=stream, epoch=2)
        assert loaded(tmp_path, rank, stream=stream, epoch=2, skip=3) == whole[3:]


@pytest.mark.parametrize("stream", [False, True])
def test_a_rest_is_left_out_on_request(tmp_path, stream):
    batches = loaded(tmp_path, stream=stream, dataloader_drop_last=True)
    assert [len(its) for its in batches] == [2, 2, 2]


def test_leaving_out_the_rest_may_not_leave_out_all(tmp_path):
    with pytest.raises(DataError, match="leaves no batch: 3 rows are fewer than the 4"):
        loaded(tmp_path, rows=3, dataloader_drop_last=True)


def test_a_batch_size_may_be_that_of_all_processes(tmp_path):
    args = config(tmp_path, accelerator_config={"split_batches": True})
    assert steps_of(args, processes(2)) == Steps(2, 2, 1)
    assert steps_of(config(tmp_path), processes(2)) == Steps(4, 2, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_evaluation_reads_every_so_many_of_the_rows_in_order(tmp_path, stream):
    data = tiny_rows(5).add_column("row", list(range(5)))
    data = data.to_iterable_dataset() if stream else data
    args = config(tmp_path, per_device_eval_batch_size=2)
    for rank, wanted in enumerate([[[0, 2], [4]], [[1, 3], []]]):
        loader = evaluation_loader(
            data, lambda its: [row["row"] for row in its], args, processes(2, rank)
        )
        assert list(loader) == wanted


def test_workers_load_as_this_process_does(tmp_path):
    logged = []
    for workers in (0, 2):
        trained = trainer(tmp_path, tiny_rows(9), dataloader_num_workers=workers)
        trained.train()
        logged.append(steps(trained))
    assert [entry["loss"] for entry in logged[0]] == [entry["loss"] for entry in logged[1]]


def test_options_of_loading_reach_both_loaders(tmp_path):
    args = config(
        tmp_path,
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=3,
        dataloader_multiprocessing_context="forkserver",
        dataloader_in_order=False,
        dataloader_pin_memory=True,
    )
    data, collate = tiny_rows(4), list
    where = (args, processes(2), torch.device("cpu"))
    training = training_loader(data, RandomSampler(data), None, collate, *where)
    for loader in (training, evaluation_loader(data, collate, args, processes(2))):
        assert (loader.num_workers, loader.persistent_workers) == (1, True)
        assert (loader.prefetch_factor, loader.in_order) == (3, False)
        assert loader.multiprocessing_context.get_start_method() == "forkserver"
        assert loader.pin_memory == torch.accelerator.is_available()


def test_rows_may_come_in_the_order_of_the_data(tmp_path):
    made = trainer(tmp_path, tiny_rows(5), train_sampling_strategy="sequential")
    assert list(made._get_train_sampler()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "rows"),  # steps of 4 rows and of 1 in turn
    [
        ({"max_steps": 5}, 4 + 1 + 4 + 1 + 4),
        ({"max_steps": 2}, 4 + 1),
        ({"max_steps": -1, "num_train_epochs": 2}, 10),
    ],
)
def test_the_rate_of_rows_is_of_those_that_there_are(tmp_path, options, rows):
    metrics = trainer(tmp_path, tiny_rows(5), **options).train().metrics
    found = metrics["train_samples_per_second"] * metrics["train_runtime"]
    assert found == pytest.approx(rows, rel=0.05)
