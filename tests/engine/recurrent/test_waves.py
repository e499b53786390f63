"""The order in which runs are computed: each after the one whose state it starts from."""

import numpy as np
import pytest
import torch

from prefopt.engine.attention import AttentionPlan, KVCache, attend_by_segments
from prefopt.engine.layout import Segment
from prefopt.engine.recurrent.waves import branch_points, make_waves

CPU = torch.device("cpu")


def plan_of(*segments, read_cache=None, write_cache=None):
    return AttentionPlan(segments, attend_by_segments, read_cache, write_cache)


# A prompt of 30 tokens, a branch of 9 that branches again, a short text of its own.
TREE = (
    Segment(30),
    Segment(9, (0,)),
    Segment(4, (0, 1)),
    Segment(1, (0, 1)),
    Segment(5, (0,)),
    Segment(20),
)


def computed(plan):
    """Return for each token of the row what a running list of all tokens before it would give.

    Rows are computed one token after the other, with whole texts for states, as a mixer would.
    """
    waves = make_waves(plan, CPU)
    states = [*(plan.read_cache.states[0] if plan.read_cache is not None else ())]
    outputs = []
    for wave in waves.calls:
        ends = []
        for row, tokens in enumerate(wave.tokens.tolist()):
            before = [] if wave.starts is None else list(states[int(wave.starts[row])])
            for column, token in enumerate(tokens):
                if wave.mask is None or wave.mask[row, column]:
                    before = [*before, token]
                outputs.append(tuple(before))
            ends.append(before)
        if wave.keeps:
            states += ends
    kept = [states[one] for one in waves.kept.tolist()]
    return [outputs[place] for place in waves.order.tolist()], kept


def texts(plan):
    """Return for each token of the row all tokens of its text up to it."""
    found = []
    for index in range(plan.first, len(plan.segments)):
        path = [int(place) for place in plan.key_places(plan.path(index))]
        length = plan.lengths[index]
        found += [tuple(path[: len(path) - length + 1 + step]) for step in range(length)]
    return found


def test_every_token_follows_the_tokens_of_its_text():
    plan = plan_of(*TREE)
    assert computed(plan)[0] == texts(plan)


def test_rows_are_texts_first_then_branches_then_their_branches():
    waves = make_waves(plan_of(*TREE), CPU)
    shapes = [tuple(wave.tokens.shape) for wave in waves.calls]
    assert shapes == [(2, 30), (1, 5), (1, 9), (2, 4)]
    assert [wave.starts is None for wave in waves.calls] == [True, False, False, False]
    assert [wave.keeps for wave in waves.calls] == [True, False, True, False]


def test_rows_of_one_call_are_of_similar_lengths():
    waves = make_waves(plan_of(*(Segment(length) for length in (100, 70, 75, 20, 4))), CPU)
    assert [tuple(wave.tokens.shape) for wave in waves.calls] == [(2, 100), (1, 70), (2, 20)]


def test_texts_of_similar_lengths_are_filled_up_on_the_left():
    waves = make_waves(plan_of(Segment(7), Segment(5), Segment(3, (1,))), CPU)
    first = waves.calls[0]
    assert first.mask.tolist() == [[True] * 7, [False] * 2 + [True] * 5]
    assert first.tokens[1, 2:].tolist() == [7, 8, 9, 10, 11]


def test_rows_that_start_from_a_state_have_two_tokens_at_least():
    waves = make_waves(plan_of(Segment(4), Segment(1, (0,))), CPU)
    assert waves.calls[1].tokens.shape == (1, 2)
    cache = KVCache((), frozenset((1,)))
    plan = plan_of(Segment(12), Segment(1, (0,)), write_cache=cache)
    waves = make_waves(plan, CPU)
    # One whose end is needed cannot be filled up: what is before it is computed again.
    assert [tuple(wave.tokens.shape) for wave in waves.calls] == [(2, 13)]
    assert computed(plan) == (texts(plan), [list(range(13))])


def test_short_runs_are_computed_again_by_those_that_continue_them():
    plan = plan_of(Segment(12), Segment(3, (0,)), Segment(6, (0, 1)), Segment(6, (0, 1)))
    waves = make_waves(plan, CPU)
    assert [tuple(wave.tokens.shape) for wave in waves.calls] == [(1, 12), (3, 9)]
    assert computed(plan)[0] == texts(plan)


def test_runs_that_are_continued_are_not_filled_up():
    middle = [Segment(length, (0,)) for length in (9, 10, 9)]
    ends = [Segment(2, (0, one)) for one in (1, 2, 3)]
    plan = plan_of(Segment(12), *middle, *ends)
    waves = make_waves(plan, CPU)
    kept = [tuple(wave.tokens.shape) for wave in waves.calls if wave.keeps]
    assert kept == [(1, 12), (1, 10), (2, 9)]
    assert computed(plan)[0] == texts(plan)


@pytest.mark.parametrize("seed", range(20))
def test_random_trees_and_the_rows_that_continue_them(seed):
    generator = np.random.default_rng(seed)
    segments = []
    for index in range(14):
        parent = int(generator.integers(-1, index))
        path = () if parent < 0 else (*segments[parent].ancestors, parent)
        segments.append(Segment(int(generator.integers(1, 20)), path))
    split = 8
    first, later = segments[:split], segments[split:]
    points = branch_points(later, split)
    cache = KVCache(first, points)
    row = plan_of(*first, write_cache=cache)
    found, kept = computed(row)
    assert found == texts(row)
    cache.states[0] = kept
    assert len(kept) == len(points)
    next_row = plan_of(*later, read_cache=cache)
    shift = next_row.query_offset
    # The row's own tokens are numbered from 0, those of the row before come with the states.
    found, _ = computed(next_row)
    for ours, theirs in zip(found, texts(next_row), strict=True):
        own = sum(token >= shift for token in theirs)
        assert ours == (*theirs[: len(theirs) - own], *(it - shift for it in theirs[-own:]))


def test_branch_points_are_the_last_segments_of_the_earlier_row():
    later = (Segment(3, (0, 2)), Segment(2, (0, 2, 5)), Segment(4), Segment(1, (1,)))
    assert branch_points(later, 5) == {2, 1}
