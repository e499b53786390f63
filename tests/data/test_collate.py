"""Batches of prepared rows: what is laid out, and what transformers is given."""

import pytest

from prefopt.data.collate import BATCHES, PreferenceCollator


def row(completions, ranks=(), desirable=(), **extra):
    return {
        "prompt_ids": [3, 4],
        "completion_ids": [[10 + i] * (i + 1) for i in range(completions)],
        "ranks": list(ranks),
        "desirable": list(desirable),
        **extra,
    }


def batch_of(*rows, **options):
    (batch,) = PreferenceCollator(**options).batches(list(rows))
    return batch


def test_a_batch_has_the_index_of_its_rows():
    index = batch_of(row(2, [0, 1], [True, False]), row(1, [], [True])).index
    assert (index.chosen.tolist(), index.rejected.tolist()) == ([0], [1])
    assert index.unpaired.tolist() == [0, 1, 2]
    assert index.by_kind == {}


def test_transformers_is_given_the_tokens_of_all_batches_without_padding():
    rows = [row(2, [0, 1], [True, False]), row(1, [], [True])]
    for layout, tokens in (("shared_prefix", [3, 4, 11, 3, 4]), ("padded", [3, 4, 3, 4, 11, 3, 4])):
        inputs = PreferenceCollator(layout, max_tokens=3)(rows)
        assert len(inputs[BATCHES]) == 2
        assert sorted(inputs["input_ids"][0].tolist()) == sorted(tokens)


def test_mismatched_completions_are_laid_out_under_their_prompts():
    batch = batch_of(
        row(1, [], [True], kl_completion_ids=[[7, 8]]),
        row(1, [], [False], kl_completion_ids=[[9]]),
        mismatched="separate",
    )
    assert batch.mismatched.tokens.input_ids.tolist() == [[3, 4, 7, 3, 4]]
    assert batch.mismatched.tokens.lengths.tolist() == [2, 1]


@pytest.mark.parametrize("mismatched", ["separate", "continued"])
def test_an_empty_mismatched_completion_is_left_out(mismatched):
    rows = [row(1, [], [True], kl_completion_ids=[ids]) for ids in ([], [7, 8])]
    batch = batch_of(*rows, mismatched=mismatched)
    assert [len(example.completion_ids) for example in batch.mismatched.examples] == [1]
    assert batch.mismatched.tokens.lengths.tolist() == [2]
    nothing = batch_of(rows[0], mismatched=mismatched)
    assert nothing.mismatched.examples == ()
    assert nothing.continues == batch.continues == (mismatched == "continued")


def test_a_batch_holds_its_examples_and_counts_the_tokens_of_its_sequences():
    texts = batch_of(row(2, [0, 1], [True, False]), row(1, [], [True])).texts
    assert [len(example.completion_ids) for example in texts.examples] == [2, 1]
    assert texts.tokens.sequence_tokens == (2 + 1) + (2 + 2) + (2 + 1)


def test_the_padded_layout_fills_with_the_padding_token():
    batch = batch_of(row(2, [0, 1], [True, False]), layout="padded", pad_token_id=5)
    assert batch.texts.tokens.input_ids.tolist() == [[3, 4, 5], [3, 4, 11]]


@pytest.mark.parametrize("mismatched", ["separate", "continued", None])
@pytest.mark.parametrize("max_tokens", [None, 5])
def test_no_rows_make_one_batch_of_nothing_that_goes_the_way_of_others(mismatched, max_tokens):
    made = PreferenceCollator(mismatched=mismatched, max_tokens=max_tokens, by_kind=True)([])
    (batch,) = made[BATCHES]
    assert made["input_ids"].shape == (1, 0)
    assert batch.texts.examples == ()
    assert batch.continues == (mismatched == "continued")
    assert (batch.mismatched is None) == (mismatched is None)
    assert set(batch.index.by_kind) == {"paired", "unpaired", "ranked"}
