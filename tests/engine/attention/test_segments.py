"""Segments: equal to attention token by token, forward and backward, through each of its ways."""

import numpy as np
import pytest
import torch

from prefopt.engine.attention import AttentionOptions, attend_by_segments
from prefopt.engine.attention import segments as module
from prefopt.engine.layout import Segment
from tests.engine.attention.rows import (
    OPTIONS,
    ROWS,
    naive,
    plan_of,
    queries_of,
    random_row,
    tensors,
    with_gradients,
)


def assert_equal(segments, options, kept=0, heads=(4, 2)):
    inputs = tensors(segments, *heads)
    query, key, value = inputs
    queries = queries_of(query, segments, kept)
    sinks = [] if options.sinks is None else [options.sinks]
    wanted = naive(queries, key, value, segments, options)
    plan = plan_of(segments, attend_by_segments, kept)
    got = attend_by_segments(queries, key, value, plan, options)
    for ours, theirs in zip(
        with_gradients(got, inputs + sinks), with_gradients(wanted, inputs + sinks), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=["blocks of short texts", "every segment apart"])
def either_way(request, monkeypatch):
    if request.param == "every segment apart":
        monkeypatch.setattr(module, "BLOCK_TOKENS", 0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("name", [name for name in ROWS if name != "long"])
def test_segments_equal_attention_by_hand(either_way, name, options):
    assert_equal(ROWS[name], options)


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (6, 3)])
def test_query_heads_share_key_value_heads(either_way, heads):
    assert_equal(ROWS["deep"], AttentionOptions(), heads=heads)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_row_continues_an_earlier_one(either_way, options):
    assert_equal(ROWS["deep"], options, kept=3)


@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(softcap=1.5),
        AttentionOptions(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
        AttentionOptions(softcap=1.5, window=3, scaling=0.7),
    ],
    ids=["softcap", "sinks", "both with a window"],
)
def test_soft_caps_and_sinks_are_honoured(options):
    if options.sinks is not None:
        options.sinks.requires_grad_()
    assert_equal(ROWS["deep"], options)
    assert_equal(ROWS["deep"], options, kept=3)


@pytest.mark.parametrize("seed", range(5))
def test_random_trees_equal_attention_by_hand(either_way, seed):
    generator = np.random.default_rng(seed)
    window = [None, 1, 3, 8][int(generator.integers(0, 4))]
    assert_equal(random_row(generator), AttentionOptions(window=window))


def test_texts_of_all_sizes_are_computed_in_their_places():
    assert_equal((*ROWS["texts alone"], Segment(100), Segment(2, (3,))), AttentionOptions())


def test_dropout_drops_weights_and_keeps_their_mean():
    segments = ROWS["pair"]
    query, key, value = tensors(segments)
    ones = torch.ones_like(value)
    options = AttentionOptions(dropout=0.5)
    plan = plan_of(segments, attend_by_segments)
    torch.manual_seed(0)
    runs = torch.stack(
        [attend_by_segments(query, key, ones, plan, options).detach() for _ in range(200)]
    )
    # Weights sum to 1, so without dropout every output of these values is 1.
    assert (runs != 1).any()
    # Seen: 0.994, of 200 * 76 * 8 numbers with a standard deviation of about 0.6.
    assert float(runs.mean()) == pytest.approx(1.0, abs=0.03)
