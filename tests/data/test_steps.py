"""Steps are those of one process whatever shares them, and each process has as much to do."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from torch.utils.data import SequentialSampler

from prefopt.data import prepare_dataset
from prefopt.data.prepared import Row
from prefopt.data.sampling import MixedLabels
from prefopt.data.split_by_tokens import laid_out_tokens
from prefopt.data.steps import (
    EvaluationShare,
    Steps,
    StepShare,
    StepStream,
    deal,
    row_tokens,
    shares_of,
    tokens_of,
)
from prefopt.engine.layout import Example
from tests.models import tiny_rows, tiny_tokenizer

CUTS = [
    Steps(rows, processes, passes)
    for rows, processes, passes in itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 4))
]


def passes_of(count, steps, sizes=None, drop_last=False, order=None):
    """Return for each pass what each process gets, checked to be as many in all."""
    order = range(count) if order is None else order
    shares = [StepShare(order, sizes, steps, rank, drop_last) for rank in range(steps.processes)]
    batches = [list(share) for share in shares]
    assert {len(its) for its in batches} == {len(shares[0])}
    return list(zip(*batches, strict=True))


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def rows_of_steps(passes, steps):
    """Return the rows of each optimiser step, in ascending order."""
    flat = [[row for batch in its for row in batch] for its in passes]
    return [
        sorted(joined(flat[start : start + steps.passes]))
        for start in range(0, len(flat), steps.passes)
    ]


@pytest.mark.parametrize("steps", CUTS, ids=str)
def test_every_step_has_the_rows_that_one_process_would_take(steps):
    generator = np.random.default_rng(0)
    alone = Steps(steps.rows_of_pass, 1, steps.passes)
    for count in range(1, 2 * steps.rows_of_step + 2):
        sizes = generator.integers(1, 100, count)
        order = generator.permutation(count).tolist()
        shared = passes_of(count, steps, sizes, order=order)
        assert rows_of_steps(shared, steps) == rows_of_steps(
            passes_of(count, alone, sizes, order=order), alone
        )
        everything = [row for its in shared for batch in its for row in batch]
        assert sorted(everything) == list(range(count))
        assert max(len(batch) for its in shared for batch in its) <= steps.rows
        # A process is without rows only where there are fewer of them than batches.
        for start in range(0, len(shared), steps.passes):
            batches = [batch for its in shared[start : start + steps.passes] for batch in its]
            rows = sum(map(len, batches))
            assert sum(map(bool, batches)) == min(rows, len(batches))


@pytest.mark.parametrize("steps", CUTS, ids=str)
def test_rows_that_fill_no_pass_of_all_are_left_out_on_request(steps):
    for count in range(1, 2 * steps.rows_of_step + 2):
        passes = passes_of(count, steps, drop_last=True)
        assert len(passes) == count // steps.rows_of_pass
        assert all(len(batch) == steps.rows for its in passes for batch in its)
        kept = [row for its in passes for batch in its for row in batch]
        assert sorted(kept) == list(range(count - count % steps.rows_of_pass))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("steps", CUTS, ids=str)
def test_the_rows_of_steps_are_counted_over_epochs(steps, drop_last):
    for count in range(steps.rows_of_pass, 2 * steps.rows_of_step + 2):
        of_steps = rows_of_steps(passes_of(count, steps, drop_last=drop_last), steps)
        taken = np.cumsum([len(rows) for rows in of_steps * 3]).tolist()
        share = StepShare(range(count), None, steps, 0, drop_last)
        assert [share.rows_of(number + 1) for number in range(len(taken))] == taken


def test_a_process_alone_keeps_the_order():
    sizes = np.array([1, 9, 2, 8, 5])
    assert passes_of(5, Steps(2), sizes) == [([0, 1],), ([2, 3],), ([4],)]


def test_two_processes_get_the_batches_of_two_passes_of_one():
    sizes = np.random.default_rng(3).integers(1, 50, 20)
    at_once = passes_of(20, Steps(2, 2, 1), sizes)
    in_turn = [batch for (batch,) in passes_of(20, Steps(2, 1, 2), sizes)]
    assert sorted(batch for its in at_once for batch in its) == sorted(in_turn)


def test_long_rows_are_dealt_out_evenly():
    generator = np.random.default_rng(1)
    sizes = np.exp(generator.normal(5, 1, 4096)).astype(int)  # as lengths of texts are
    steps = Steps(8, 4, 2)

    def unevenness(of):
        largest = [max(sizes[batch].sum() for batch in its) for its in passes_of(4096, steps, of)]
        return np.sum(largest) * 4 / sizes.sum()

    assert unevenness(None) > 1.3
    assert unevenness(sizes) < 1.1  # a text longer than a fair share cannot be cut


def test_no_process_always_has_the_largest_share():
    sizes = [9, 8, 7, 6, 5, 4, 3, 2]
    of_ranks = [list(shares_of(sizes, Steps(2, 2, 2), rank)) for rank in (0, 1)]
    first, second = ([sum(sizes[i] for i in its) for its in shares] for shares in of_ranks)
    assert sum(first) == sum(second)


def test_a_share_has_no_more_items_than_it_can_hold():
    assert deal([9, 1, 1, 1], 2, 2) == [[0, 3], [1, 2]]
    assert deal([], 2, 3) == [[], []]


def test_an_epoch_has_an_order_of_its_own_and_comes_again_the_same():
    labels = np.arange(40) % 3 == 0
    share = StepShare(MixedLabels(labels, 0), None, Steps(4, 2, 2), rank=1)
    first = list(share)
    assert list(share) == first
    share.set_epoch(1)
    assert list(share) != first
    StepShare(SequentialSampler(labels), None, Steps(4)).set_epoch(1)  # has none


@pytest.mark.parametrize("count", range(1, 14))
def test_processes_evaluate_each_row_once_in_as_many_batches(count):
    steps = Steps(2, 3)
    shares = [EvaluationShare(count, steps, rank) for rank in range(3)]
    batches = [list(share) for share in shares]
    assert {len(its) for its in batches} == {len(shares[0])}
    for rank, its in enumerate(batches):
        assert [row for batch in its for row in batch] == list(range(rank, count, 3))


def prepared(kind="paired"):
    return prepare_dataset(tiny_rows(23, kind), tiny_tokenizer(), needs_kl=True).dataset


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_is_shared_as_its_rows_come(in_turn, drop_last):
    steps, data = Steps(2, 3), prepared()
    streams = [
        StepStream(data.to_iterable_dataset(), steps, rank, in_turn, drop_last) for rank in range(3)
    ]
    key = [row["completion_ids"] for row in data]
    batches = [[[key.index(row["completion_ids"]) for row in its] for its in s] for s in streams]
    passes = [sorted(joined(its)) for its in zip(*batches, strict=True)]
    wanted = [list(range(start, min(start + 6, 23))) for start in range(0, 23, 6)]
    assert passes == (wanted[:-1] if drop_last else wanted)
    if in_turn:
        second = joined(batches[1])
        assert second == list(range(1, 24, 3))[: len(second)]


def test_a_stream_is_told_the_epoch():
    data = prepared().to_iterable_dataset().shuffle(seed=0, buffer_size=23)
    stream = StepStream(data, Steps(23))
    first = list(stream)
    stream.set_epoch(1)
    assert list(stream) != first


def as_example(row: Row) -> Example:
    return Example(np.array(row["prompt_ids"]), [np.array(ids) for ids in row["completion_ids"]])


@pytest.mark.parametrize("kind", ["paired", "unpaired", "ranked"])
def test_sizes_are_those_of_the_layout_but_for_common_beginnings(kind):
    data = prepared(kind)
    for layout in ("shared_prefix", "padded"):
        sizes = row_tokens(data, layout == "shared_prefix")
        laid_out = [laid_out_tokens(as_example(row), layout) for row in data]
        assert np.all(sizes >= laid_out)
        assert np.sum(sizes) <= 1.02 * np.sum(laid_out)
    assert row_tokens(data).tolist() == [tokens_of(row) for row in data]


def test_mismatched_completions_cost_a_third():
    data = prepared("unpaired")
    lengths = [sum(map(len, row["kl_completion_ids"])) // 3 for row in data]
    assert (row_tokens(data, with_kl=True) - row_tokens(data)).tolist() == lengths


def test_chosen_rows_and_no_rows_have_their_own_sizes():
    data = prepared()
    assert row_tokens(data.select([5, 2])).tolist() == row_tokens(data)[[5, 2]].tolist()
    assert row_tokens(data.select([])).tolist() == []
    nulls = Dataset.from_dict({"prompt_ids": [[1]], "completion_ids": [[[2], [3]]]}).add_column(
        "kl_completion_ids", [None]
    )
    assert row_tokens(nulls).tolist() == [3]
