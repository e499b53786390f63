"""Prepared rows are shared out, named, and read as they were written."""

import numpy as np
import pytest
from datasets import Dataset

from prefopt.data import prepare_dataset
from prefopt.data.prepared import (
    FACTS,
    PREPARED_COLUMNS,
    completion_key,
    completion_keys,
    examples_of,
    is_stream,
    list_lengths,
    read_chunks,
    read_examples,
)

ROWS = [
    {
        "kind": "paired",
        "prompt_ids": [1, 2],
        "completion_ids": [[3], [4, 5]],
        "kl_completion_ids": [[9], [8]],
        "desirable": [True, False],
        "ranks": [0, 1],
    },
    {
        "kind": "unpaired",
        "prompt_ids": [],
        "completion_ids": [[6, 7, 8]],
        "kl_completion_ids": [[3]],
        "desirable": [True],
        "ranks": [],
    },
]
DATASET = Dataset.from_list(ROWS)


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


def as_lists(examples):
    return [
        (example.prompt_ids.tolist(), [item.tolist() for item in example.completion_ids])
        for example in examples
    ]


def test_what_prepare_makes_has_known_columns_only():
    made = prepare_dataset(DATASET, None).dataset
    assert set(made.column_names) <= set(PREPARED_COLUMNS)
    assert not set(FACTS) & set(made.column_names)


def test_a_stream_has_no_length():
    assert is_stream(DATASET.to_iterable_dataset())
    assert not is_stream(DATASET)
    assert not is_stream(None)


def test_a_key_depends_on_tokens_and_where_the_completion_begins():
    key = completion_key(ids(1, 2), ids(3))
    assert len(key) == 16
    # blake2b of the length 2 and the tokens 1, 2, 3 as 64-bit integers; stores hold such keys.
    assert key.hex() == "4c85ae5d0e2ecd0933f7d692f4bf61c8"
    assert key == completion_key(np.array([1, 2], dtype=np.int32), ids(3))
    others = [completion_key(*texts) for texts in ((ids(1), ids(2, 3)), (ids(1, 2), ids(4)))]
    assert len({key, *others}) == 3
    assert completion_keys(ids(1, 2), [ids(3), ids(4)]) == [key, others[1]]


def test_columns_are_read_in_pieces():
    chunks = list(read_chunks(DATASET, "completion_ids"))
    assert [length for chunk in chunks for length in list_lengths(chunk)] == [2, 1]
    assert [row for chunk in chunks for row in chunk.to_pylist()] == DATASET["completion_ids"][:]


@pytest.mark.parametrize("with_kl", [False, True])
def test_examples_are_those_of_the_rows(with_kl):
    wanted = [
        (row["prompt_ids"], row["completion_ids"] + (row["kl_completion_ids"] if with_kl else []))
        for row in ROWS
    ]
    assert as_lists(examples_of(ROWS, with_kl)) == wanted
    assert as_lists(read_examples(DATASET, with_kl)) == wanted
    assert as_lists(read_examples(DATASET, with_kl, [1, 0])) == wanted[::-1]
