"""Several datasets as one: which rows are used how often, and what is refused."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, Features, Value

from prefopt.data import DataError, WeightedDataset
from prefopt.data.mixture import mix, read_mixture, rows_used


def rows(**columns):
    return Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("count", "weight", "used"),
    [(10, 1.0, 10), (10, 0.5, 5), (10, 2.0, 20), (10, 2.5, 25), (3, 0.4, 1), (7, 1.2, 8)],
)
def test_each_row_is_used_as_often_as_the_weight_says(count, weight, used):
    """No row is used more than once more than another."""
    numbers = rows_used(count, weight, [0, 0])
    times = Counter(numbers.tolist())
    assert len(numbers) == used
    assert {times[row] for row in range(count)} <= {int(weight), int(weight) + 1}
    assert numbers.tolist() == sorted(numbers)


def test_the_rows_of_a_part_are_drawn_by_the_seed():
    halves = [rows_used(100, 0.5, [seed, 0]).tolist() for seed in (1, 1, 2)]
    assert halves[0] == halves[1] != halves[2]
    assert rows_used(100, 0.5, [1, 1]).tolist() != halves[0]
    # The first half of a file may be of one kind: it is not the half that is used.
    assert halves[0] != list(range(50))


def test_a_weight_that_leaves_nothing_is_an_error():
    with pytest.raises(DataError, match=r"a weight of 0.04 leaves none of 10 rows"):
        rows_used(10, 0.04, [0])


def test_rows_of_several_datasets_are_one_dataset():
    mixed = mix(
        [
            (rows(kind=["a", "b"], weight=[1, 2]), np.array([0, 1])),
            (rows(kind=["c"], margin=[0.5], weight=[0.5]), np.array([0, 0])),
        ]
    )
    assert mixed.to_list() == [
        {"kind": "a", "weight": 1.0, "margin": None},
        {"kind": "b", "weight": 2.0, "margin": None},
        {"kind": "c", "weight": 0.5, "margin": 0.5},
        {"kind": "c", "weight": 0.5, "margin": 0.5},
    ]


def test_a_column_that_is_not_read_goes_where_types_differ():
    empty = Features({"kind": Value("string"), "note": Value("null")})
    mixed = mix(
        [
            (rows(kind=["a"], id=[7], source=["web"]), np.array([0])),
            (rows(kind=["b"], id=["x7"]), np.array([0])),
            (Dataset.from_dict({"kind": ["c"], "note": [None]}, features=empty), np.array([0])),
        ]
    )
    assert sorted(mixed.column_names) == ["kind", "note", "source"]
    assert mixed["source"][:] == ["web", None, None]


def test_a_dataset_a_tuple_and_a_record_are_the_same():
    data = rows(prompt=["?"])
    given = [data, (data,), (data, 1), (data, np.float32(1), None), WeightedDataset(data)]
    assert {part.weight for part in read_mixture(given)} == {1.0}
    assert read_mixture([(data, 2, "hh")])[0].name == "hh"


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 0.0])
def test_a_weight_must_be_greater_than_nothing(weight):
    with pytest.raises(ValueError, match=r"of datasets\[0\] \(hh\) must be greater than 0"):
        read_mixture([(rows(prompt=["?"]), weight, "hh")])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([rows(prompt=["?"]), {"prompt": "?"}], r"datasets\[1\] must be a datasets.Data"),
        (["pairs.jsonl"], "got str"),
        ([(rows(prompt=["?"]), "0.5")], "must be a number, got '0.5'"),
        ([(rows(prompt=["?"]), True)], "must be a number, got True"),
        ([(rows(prompt=["?"]), 1.0, "a", "b")], "got tuple"),
    ],
)
def test_what_is_no_dataset_or_weight_is_a_type_error(items, message):
    with pytest.raises(TypeError, match=message):
        read_mixture(items)
