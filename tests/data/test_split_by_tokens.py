"""Batches are cut into few, even parts, and nothing is lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data.collate import PreferenceCollator
from prefopt.data.split_by_tokens import laid_out_tokens, split_by_tokens
from prefopt.engine.layout import Example, build_layout


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 100))
def test_parts_are_the_whole_in_order_and_within_the_limit(sizes, most):
    parts = split_by_tokens(sizes, most)
    assert [size for part in parts for size in sizes[part]] == sizes
    for part in parts:
        assert sum(sizes[part]) <= most or len(sizes[part]) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(50, 100))
def test_no_fewer_parts_would_do(sizes, most):
    parts, held, needed = split_by_tokens(sizes, most), 0, 1
    for size in sizes:
        held += size
        if held > most:
            needed, held = needed + 1, size
    assert len(parts) == needed


def test_parts_are_even():
    parts = split_by_tokens([10] * 12, 110)
    assert [len(range(*part.indices(12))) for part in parts] == [6, 6]


def test_tokens_of_an_example_are_those_of_its_own_row():
    example = Example(ids(1, 2, 3), [ids(4, 5, 6, 7), ids(4, 5, 8)])
    # The row leaves out the last token of each completion.
    assert (
        laid_out_tokens(example, "shared_prefix") == build_layout([example]).input_ids.numel() + 2
    )
    padded = build_layout([example], "padded")
    assert laid_out_tokens(example, "padded") == padded.attention_mask.sum() + 2


def row(length):
    return {
        "prompt_ids": [3] * length,
        "completion_ids": [[10, 11], [12]],
        "ranks": [0, 1],
        "desirable": [True, False],
        "kl_completion_ids": [[7, 8], [9]],
    }


def test_a_batch_beyond_the_limit_is_cut_by_examples():
    batches = PreferenceCollator(max_tokens=20).batches([row(9), row(9), row(2), row(30)])
    assert [len(batch.texts.examples) for batch in batches] == [1, 2, 1]
    assert [batch.index.chosen.tolist() for batch in batches] == [[0], [0, 2], [0]]


def test_a_batch_within_the_limit_is_not_cut():
    assert len(PreferenceCollator(max_tokens=100).batches([row(9), row(9)])) == 1


def test_mismatched_completions_continue_a_batch_of_one_part_only():
    (whole,) = PreferenceCollator(mismatched="continued").batches([row(9), row(9)])
    assert whole.continues
    assert whole.mismatched.tokens is whole.texts.tokens.continuation
    assert whole.mismatched.tokens.lengths.tolist() == [2, 1, 2, 1]
    cut = PreferenceCollator(mismatched="continued", max_tokens=15).batches([row(9), row(9)])
    assert len(cut) == 2
    assert not any(batch.continues for batch in cut)
