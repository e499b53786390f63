"""Wrong classes of datasets and wrong numbers are found before training."""

import pytest
from datasets import Dataset

from prefopt.data import DataError, prepare_dataset
from prefopt.data.columns import check_columns, check_datasets, check_margins
from tests.models import tiny_tokenizer

ROWS = {"prompt": ["w3"] * 3, "chosen": [" w4", " w5", " w6"], "rejected": [" w7"] * 3}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("weight", [1.0, -1.0, 1.0], "train data, row 1, column 'weight': is -1.0; .* at least 0"),
        ("preference_probability", [0.0, 1.0, 1.5], "row 2, column 'preference_probability'"),
        ("win_rate_chosen", [0.0, 1.0, -0.5], "row 2, column 'win_rate_chosen'"),
        ("win_rate_rejected", [0.0, 1.0, 0.5], "win rates come in pairs: add"),
        ("margin", [0.0, float("nan"), 1.0], "row 1, column 'margin': is nan"),
        ("margin", ["a", "b", "c"], "column 'margin': must hold numbers"),
    ],
)
def test_wrong_numbers_are_met_before_training(column, values, message):
    rows = Dataset.from_dict(ROWS | {column: values})
    with pytest.raises(DataError, match=message):
        prepare_dataset(rows, tiny_tokenizer())


def test_a_loss_that_asks_for_margins_needs_a_column_that_tells_them():
    with pytest.raises(DataError, match="add a column 'margin', or 'score_chosen'"):
        check_margins(["prompt_ids"], ["chosen_logps", "margins"])
    for column in ("margin", "scores", "score_chosen"):
        check_margins([column], ["margins"])
    check_margins(["prompt_ids"], ["chosen_logps"])


def test_missing_and_whole_numbers_are_fine():
    check_columns(Dataset.from_dict(ROWS | {"weight": [None, 2, 0], "margin": [None] * 3}))


def test_data_are_datasets_and_there_is_at_least_one():
    rows = Dataset.from_dict(ROWS)
    check_datasets(rows, None)
    check_datasets(None, {"a": rows, "b": rows.to_iterable_dataset()})
    with pytest.raises(ValueError, match="give a train_dataset, or an eval_dataset"):
        check_datasets(None, None)
    with pytest.raises(TypeError, match=r"got list; make one with datasets.Dataset.from_list"):
        check_datasets(rows, {"a": rows, "b": [{"prompt": "p"}]})
