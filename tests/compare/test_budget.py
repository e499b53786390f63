"""The same tokens for every method."""

import json

import pytest

from prefopt.compare.budget import Budget, RowTokens, budget_of, row_tokens
from prefopt.compare.options import check_options
from prefopt.toy import build_tokenizer

ROW = RowTokens(all=100.0, preferred=40.0)


def budget(own, rows=1000, **common):
    common = {"loss_type": "dpo", "per_device_train_batch_size": 10, **common}
    return budget_of(check_options({**common, **own}), check_options(common), own, rows, ROW)


def test_losses_on_pairs_make_the_same_steps():
    for loss in ("dpo", "kto", "orpo", "dpo + 0.2*sft"):
        assert budget({"loss_type": loss}, max_steps=50) == Budget(50, 500, 50_000.0, 1.0)


def test_a_loss_on_one_text_sees_more_rows_for_as_many_tokens():
    assert budget({"loss_type": "sft"}, max_steps=50) == Budget(125, 1250, 50_000.0, 0.4)


def test_a_batch_of_another_size_makes_other_steps():
    own = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 4}
    assert budget(own, max_steps=50) == Budget(25, 500, 50_000.0, 1.0)


def test_epochs_are_turned_into_steps():
    assert budget({}, rows=1001, num_train_epochs=2) == Budget(202, 2020, 202_000.0, 1.0)


def test_steps_of_a_method_go_before_the_budget():
    assert budget({"max_steps": 7}, max_steps=50).steps == 7


def test_tokens_of_a_row_are_those_of_all_its_texts(tmp_path):
    pairs = [
        {"prompt": "the plot was", "chosen": " very good .", "rejected": " bad ."},
        {"prompt": "the plot was", "chosen": " good .", "rejected": " not good ."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    found = row_tokens(path, build_tokenizer(), max_length=None)
    # Three words of prompt; completions of 3 and 2, then 2 and 3 words, and an end each.
    assert found == RowTokens(all=pytest.approx(13), preferred=pytest.approx(6.5))
