"""Wrong classes of datasets and wrong numbers are found before training."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from prefopt.data import DataError, prepare_dataset
from prefopt.data.columns import (
    check_columns,
    check_datasets,
    check_margins,
    check_numbers,
    check_weights,
)
from prefopt.data.kinds import first_kinds
from tests.models import tiny_tokenizer

ROWS = {"prompt": ["w3"] * 3, "chosen": [" w4", " w5", " w6"], "rejected": [" w7"] * 3}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("weight", [1.0, -1.0, 1.0], "train data, row 1, column 'weight': is -1.0; .* at least 0"),
        ("preference_probability", [0.0, 1.0, 1.5], "row 2, column 'preference_probability'"),
        ("win_rate_chosen", [0.0, 1.0, 0.5], "win rates come in pairs: add"),
        ("win_rate_rejected", [0.0, 1.0, 0.5], "win rates come in pairs: add"),
        ("margin", [0.0, float("nan"), 1.0], "row 1, column 'margin': is nan"),
        ("margin", ["a", "b", "c"], "row 0, column 'margin': is 'a'; it must be a number"),
        ("margin", [True, False, True], "row 0, column 'margin': is True; it must be a number"),
        ("weight", [1.0, 1.0, 1e300], "row 2, column 'weight': .* finite in single precision"),
    ],
)
def test_wrong_numbers_are_met_before_training(column, values, message):
    rows = Dataset.from_dict(ROWS | {column: values})
    with pytest.raises(DataError, match=message):
        prepare_dataset(rows, tiny_tokenizer())
    with pytest.raises(DataError, match=message):
        list(prepare_dataset(rows.to_iterable_dataset(), tiny_tokenizer()).dataset)


def test_each_row_must_tell_a_margin_to_a_loss_that_takes_them():
    pairs = {0: "paired", 1: "paired"}
    check_margins({"margin": [0.5]}, [0], {0: "paired"})
    check_margins({"scores": [[2, 1]]}, [0], {0: "ranked"})
    check_margins({"score_chosen": [2.0], "score_rejected": [1.0]}, [0], {0: "paired"})
    both = {"margin": [0.5, None], "scores": [None, [1.0, 2.0]]}
    check_margins(both, [0, 1], {0: "paired", 1: "ranked"})
    with pytest.raises(DataError, match=r"row 7: the loss takes margins .* add a column 'margin'"):
        check_margins({"score_chosen": [2.0, 2.0], "score_rejected": [1.0, None]}, [6, 7], pairs)
    for told in ({"prompt_ids": [[1]]}, {"scores": [[2, 1]]}):
        with pytest.raises(DataError, match="row 0: the loss takes margins"):
            check_margins(told, [0], {0: "paired"})
    check_margins({"prompt_ids": [[1]]}, [0], {})


def test_missing_and_whole_numbers_are_fine():
    check_numbers({"weight": [None, 2, 0], "margin": [None, None, np.float32(1)]}, range(3))
    check_columns(["prompt", "win_rate_chosen", "win_rate_rejected", "score_chosen"])


def test_weights_that_are_all_0_teach_nothing():
    check_weights([0, None])
    with pytest.raises(DataError, match="column 'weight': every weight is 0"):
        check_weights([0, 0.0])


def test_a_win_rate_is_given_for_both_completions_or_neither():
    rates = {"win_rate_chosen": [None, 0.9], "win_rate_rejected": [None, None]}
    with pytest.raises(DataError, match=r"row 5, column 'win_rate_rejected': is null, but that of"):
        check_numbers(rates, [4, 5])
    with pytest.raises(DataError, match=r"row 1, column 'win_rate_chosen': is -0.5; .* 0 and 1"):
        check_numbers({"win_rate_chosen": [0.5, -0.5]}, [0, 1])


def test_data_are_datasets_and_there_is_at_least_one():
    rows = Dataset.from_dict(ROWS)
    check_datasets(rows, None)
    check_datasets(None, {"a": rows, "b": rows.to_iterable_dataset()})
    check_datasets([rows, (rows, 0.5)], {"a": [rows]})
    with pytest.raises(ValueError, match="train_dataset is an empty list"):
        check_datasets([], None)
    with pytest.raises(ValueError, match=r"weight of eval_dataset\['a'\]\[1\] must be greater"):
        check_datasets(rows, {"a": [rows, (rows, 0)]})
    with pytest.raises(ValueError, match="give a train_dataset, or an eval_dataset"):
        check_datasets(None, None)
    with pytest.raises(TypeError, match=r"got list; make one with datasets.Dataset.from_list"):
        check_datasets(rows, {"a": rows, "b": [{"prompt": "p"}]})
    with pytest.raises(TypeError, match=r"train_dataset must be .* take one of its splits"):
        check_datasets(DatasetDict(a=rows, b=rows), None)
    with pytest.raises(ValueError, match="eval_dataset is an empty dictionary"):
        check_datasets(rows, {})
    with pytest.raises(TypeError, match=r"eval_dataset\['a'\] must be .* got NoneType"):
        check_datasets(rows, {"a": None})
    with pytest.raises(TypeError, match="a name must be text, got 5"):
        check_datasets(rows, {5: rows})


@pytest.mark.parametrize("row", [0, 2])
def test_bytes_that_are_no_text_are_told_with_their_place(row):
    """Arrow takes such a file as it is, and Python fails when it reads the row."""
    texts = [b"w3", b"w4", b"w5"]
    texts[row] = b"w\x80"
    column = pa.Array.from_buffers(pa.string(), 3, pa.array(texts, pa.binary()).buffers())
    rows = Dataset(pa.table({"prompt": column, "chosen": ["w6"] * 3, "rejected": ["w7"] * 3}))
    message = f"row {row}, column 'prompt': holds text that is not UTF-8"
    with pytest.raises(DataError, match=message):
        prepare_dataset(rows, tiny_tokenizer())
    if row == 0:
        with pytest.raises(DataError, match=message):
            first_kinds(rows, None)
