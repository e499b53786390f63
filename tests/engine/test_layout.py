"""The layouts hold the right tokens in the right places."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.engine.layout import Example, build_layout, common_prefix_length


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


def test_the_prompt_stands_once_and_branches_continue_its_positions():
    layout = build_layout([Example(ids(1, 2, 3), [ids(4, 5, 6), ids(7, 8)])])
    # The last token of a completion predicts nothing, so it is left out.
    assert layout.input_ids.tolist() == [[1, 2, 3, 4, 5, 7]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert [(s.length, s.ancestors) for s in layout.segments] == [(3, ()), (2, (0,)), (1, (0,))]


def test_the_first_token_of_a_branch_is_predicted_by_the_last_shared_one():
    layout = build_layout([Example(ids(1, 2, 3), [ids(4, 5, 6), ids(7, 8)])])
    predictions = list(
        zip(layout.predict_positions.tolist(), layout.target_ids.tolist(), strict=True)
    )
    assert predictions == [(2, 4), (3, 5), (4, 6), (2, 7), (5, 8)]
    assert layout.lengths.tolist() == [3, 2]


def test_sharing_reaches_into_completions_that_start_alike():
    layout = build_layout([Example(ids(1), [ids(5, 6, 7), ids(5, 6, 8)])])
    assert layout.input_ids.tolist() == [[1, 5, 6]]
    # 5 and 6 are predicted once and counted for both completions.
    assert layout.target_ids.tolist() == [5, 6, 7, 8]
    assert layout.token_index.tolist() == [0, 1, 2, 0, 1, 3]
    assert layout.completion_index.tolist() == [0, 0, 0, 1, 1, 1]


def test_identical_completions_cost_nothing_more():
    layout = build_layout([Example(ids(1, 2), [ids(3, 4), ids(3, 4)])])
    assert layout.input_ids.tolist() == [[1, 2, 3]]
    assert layout.lengths.tolist() == [2, 2]


def test_a_completion_may_be_the_beginning_of_another():
    layout = build_layout([Example(ids(1), [ids(3, 4), ids(3, 4, 5, 6)])])
    assert layout.input_ids.tolist() == [[1, 3, 4, 5]]
    assert layout.target_ids[layout.token_index].tolist() == [3, 4, 3, 4, 5, 6]


def test_the_first_token_of_a_text_without_a_prompt_is_not_scored():
    for mode in ("shared_prefix", "padded"):
        layout = build_layout([Example(ids(), [ids(3, 4), ids(5, 6, 7)])], mode)
        assert layout.lengths.tolist() == [1, 2]
        assert layout.target_ids[layout.token_index].tolist() == [4, 6, 7]


def test_a_mask_leaves_tokens_out_of_the_score_but_not_out_of_the_text():
    masks = [np.array([True, False, True]), np.array([False, True])]
    example = Example(ids(1), [ids(3, 4, 5), ids(3, 6)], masks)
    for mode in ("shared_prefix", "padded"):
        layout = build_layout([example], mode)
        assert layout.target_ids[layout.token_index].tolist() == [3, 5, 6]
        assert layout.lengths.tolist() == [2, 1]
    assert build_layout([example]).input_ids.tolist() == [[1, 3, 4]]


def test_padded_rows_are_filled_behind_the_text():
    layout = build_layout([Example(ids(1, 2), [ids(3), ids(4, 5)])], "padded", pad_token_id=9)
    assert layout.input_ids.tolist() == [[1, 2, 9], [1, 2, 4]]
    assert layout.attention_mask.tolist() == [[True, True, False], [True, True, True]]


def test_sequence_tokens_counts_each_completion_with_its_prompt():
    layout = build_layout([Example(ids(1, 2, 3), [ids(4, 5), ids(6)])])
    assert layout.sequence_tokens == 5 + 4


@pytest.mark.parametrize("examples", [[], [Example(ids(1), [])]])
def test_nothing_to_lay_out_is_an_error(examples):
    with pytest.raises(ValueError, match="at least one example"):
        build_layout(examples)


def test_an_unknown_layout_is_an_error():
    with pytest.raises(ValueError, match="'shared_prefix' or 'padded', got 'flat'"):
        build_layout([Example(ids(1), [ids(2)])], "flat")


tokens = st.integers(0, 3)
completions = st.lists(st.lists(tokens, min_size=1, max_size=6).map(lambda t: ids(*t)), min_size=1)
examples = st.builds(Example, st.lists(tokens, max_size=5).map(lambda t: ids(*t)), completions)


@settings(max_examples=200, deadline=None)
@given(st.lists(examples, min_size=1, max_size=4))
def test_every_token_is_predicted_from_its_own_text(batch):
    """Following ancestors from each predicting position gives exactly the text before the token."""
    layout = build_layout(batch)
    segment_of, start_of = [], []
    for number, segment in enumerate(layout.segments):
        start_of.append(len(segment_of))
        segment_of += [number] * segment.length
    row = layout.input_ids[0]

    def text_up_to(position):
        number = segment_of[position]
        before = [
            row[start_of[a] :][: layout.segments[a].length]
            for a in layout.segments[number].ancestors
        ]
        return np.concatenate([*before, row[start_of[number] : position + 1]]).tolist()

    at = 0
    for example in batch:
        for completion in example.completion_ids:
            text = [*example.prompt_ids.tolist(), *completion.tolist()]
            first = max(len(example.prompt_ids), 1)
            for place in range(first, len(text)):
                index = layout.token_index[at]
                assert layout.target_ids[index] == text[place]
                position = layout.predict_positions[index]
                assert text_up_to(position) == text[:place]
                assert layout.position_ids[0, position] == place - 1
                at += 1
    assert at == len(layout.token_index)


@settings(max_examples=100, deadline=None)
@given(st.lists(examples, min_size=1, max_size=4))
def test_both_layouts_score_the_same_tokens(batch):
    shared, padded = build_layout(batch), build_layout(batch, "padded")
    assert (shared.lengths == padded.lengths).all()
    assert (shared.completion_index == padded.completion_index).all()
    targets = [layout.target_ids[layout.token_index] for layout in (shared, padded)]
    assert (targets[0] == targets[1]).all()
    assert shared.input_ids.size <= padded.attention_mask.sum()


def test_common_prefix_of_sequences_of_different_length():
    assert common_prefix_length([ids(1, 2, 3), ids(1, 2), ids(1, 2, 3, 4)]) == 2
    assert common_prefix_length([ids(1, 2), ids(3)]) == 0
