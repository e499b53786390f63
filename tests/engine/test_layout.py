"""The layouts hold the right tokens in the right places."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.engine import Scorer
from prefopt.engine.layout import Example, build_layout, in_padded_rows
from tests.engine.trees import plain_logps, trees
from tests.models import tiny_model


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
    predictions = zip(
        layout.predict_positions[layout.token_index].tolist(),
        layout.target_ids[layout.token_index].tolist(),
        strict=True,
    )
    assert list(predictions) == [(2, 4), (3, 5), (4, 6), (2, 7), (5, 8)]
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


@pytest.mark.parametrize("mode", ["shared_prefix", "padded"])
def test_an_example_without_a_completion_is_an_error(mode):
    with pytest.raises(ValueError, match="each example of a layout needs at least one completion"):
        build_layout([Example(ids(1), [])], mode)


@pytest.mark.parametrize("mode", ["shared_prefix", "padded"])
def test_no_examples_make_a_layout_of_nothing(mode):
    continued = [] if mode == "shared_prefix" else None
    layout = build_layout([], mode, continued=continued)
    assert layout.name == mode
    assert (layout.continuation is None) == (mode == "padded")
    for its in (layout, layout.continuation or layout):
        assert its.sequence_tokens == its.input_ids.numel() == its.token_index.numel() == 0
        assert its.lengths.shape == its.predict_positions.shape == (0,)
        assert its.lengths.dtype == its.target_ids.dtype == torch.int64


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
    assert shared.input_ids.numel() <= padded.attention_mask.sum()


def test_texts_of_different_examples_share_a_long_beginning():
    system = list(range(20, 30))
    batch = [
        Example(ids(*system, 1, 2), [ids(3, 4), ids(5, 6)]),
        Example(ids(*system, 7), [ids(3, 4), ids(8, 9)]),
        Example(ids(*system[:5], 7), [ids(3, 4)]),
    ]
    layout = build_layout(batch)
    assert layout.segments[0].length == len(system)
    assert layout.input_ids.numel() == len(system) + (2 + 1 + 1) + (1 + 1 + 1) + (5 + 1 + 1)
    assert max(len(segment.ancestors) for segment in layout.segments) == 2


def test_some_of_the_completions_share_a_long_beginning():
    start = list(range(20, 30))
    completions = [ids(*start, 1, 2), ids(3, 4), ids(*start, 5, 6)]
    layout = build_layout([Example(ids(7, 8), completions)])
    assert layout.input_ids.numel() == 2 + len(start) + 1 + 1 + 1


def test_a_continuation_stands_behind_the_prompts_of_its_row():
    batch = [Example(ids(1, 2, 3), [ids(4, 5), ids(4, 6)])]
    layout = build_layout(batch, continued=[Example(ids(1, 2, 3), [ids(7, 8, 9)])])
    # The shared segment reaches into the completions, so it is cut where the prompt ends.
    assert [(s.length, s.ancestors) for s in layout.segments] == [(3, ()), (1, (0,))]
    assert layout.input_ids.tolist() == [[1, 2, 3, 4]]
    more = layout.continuation
    assert more.input_ids.tolist() == [[7, 8]]
    assert more.position_ids.tolist() == [[3, 4]]
    assert [(s.length, s.ancestors) for s in more.segments] == [(2, (0,))]
    assert more.predict_positions[more.token_index].tolist() == [2, 4, 5]
    assert more.target_ids[more.token_index].tolist() == [7, 8, 9]


def test_a_continuation_must_fit_the_examples():
    one = [Example(ids(1), [ids(2)])]
    with pytest.raises(ValueError, match="cannot be continued by 2"):
        build_layout(one, continued=one * 2)
    with pytest.raises(ValueError, match="padded layout cannot be continued"):
        build_layout(one, "padded", continued=one)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(examples, completions), min_size=1, max_size=4), st.integers(1, 4))
def test_a_continuation_scores_the_tokens_of_its_own_layout(batch, least_shared):
    first = [example for example, _ in batch]
    more = [Example(example.prompt_ids, others) for example, others in batch]
    layout = build_layout(first, continued=more, least_shared=least_shared)
    alone = build_layout(first, least_shared=least_shared)
    assert (layout.target_ids[layout.token_index] == alone.target_ids[alone.token_index]).all()
    continued, wanted = layout.continuation, build_layout(more, "padded")
    assert (continued.lengths == wanted.lengths).all()
    assert (
        continued.target_ids[continued.token_index] == wanted.target_ids[wanted.token_index]
    ).all()
    tokens = torch.cat([layout.input_ids[0], continued.input_ids[0]])
    places = torch.cat([layout.position_ids[0], continued.position_ids[0]])
    own, theirs = continued.predict_positions[continued.token_index], wanted.token_index
    at = wanted.predict_positions[theirs]
    assert (tokens[own] == wanted.input_ids.ravel()[at]).all()
    assert (places[own] == wanted.position_ids.ravel()[at]).all()


# Rows laid out anew for a model that cannot share prefixes ---------------------------------------


def scores_of_rows(row):
    """Score the padded form of a row with a model that shares nothing, prediction by prediction."""
    padded = in_padded_rows(row)
    assert padded.name == "padded"
    return padded, Scorer(tiny_model("bloom")).score(padded)


def test_a_packed_row_in_padded_rows_has_the_same_predictions():
    examples = trees()
    row = build_layout(examples, least_shared=3)
    padded, scores = scores_of_rows(row)
    torch.testing.assert_close(padded.target_ids, row.target_ids)
    torch.testing.assert_close(padded.token_index, row.token_index)
    wanted = plain_logps(tiny_model("bloom"), examples).detach()
    torch.testing.assert_close(scores.logps.detach(), wanted, rtol=1e-5, atol=1e-4)


def test_completions_of_which_nothing_is_predicted_take_no_padded_row():
    nothing = Example(np.zeros(0, dtype=np.int64), [np.array([5]), np.array([6, 7])])
    padded = in_padded_rows(build_layout([nothing]))
    assert padded.input_ids.tolist() == [[6]]
    assert padded.lengths.tolist() == [0, 1]
    empty = Example(np.zeros(0, dtype=np.int64), [np.array([5])])
    assert in_padded_rows(build_layout([empty])).input_ids.numel() == 0
