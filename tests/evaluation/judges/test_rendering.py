"""Batches of similar length give their numbers back in order."""

import pytest

from prefopt.evaluation.judges.rendering import answered, in_batches


def test_numbers_come_back_in_the_order_of_the_items():
    items, batches = ["aaa", "b", "cccc", "dd", "eeeee"], []

    def score(batch):
        batches.append(batch)
        return [float(len(item)) for item in batch]

    assert in_batches(items, list(map(len, items)), 2, score, title="Judging") == [3, 1, 4, 2, 5]
    assert batches == [["eeeee", "cccc"], ["aaa", "dd"], ["b"]]


def test_an_answer_has_the_form_of_its_prompt():
    assert answered("a", "b").completions == ["b"]
    asked = [{"role": "user", "content": "a"}]
    assert answered(asked, "b").completions == [[{"role": "assistant", "content": "b"}]]
    with pytest.raises(ValueError, match="token ids"):
        answered([3], "b")
