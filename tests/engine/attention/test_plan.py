"""Places of segments in a row and in a cache, worked out by hand."""

import torch

from prefopt.engine.attention import (
    AttentionOptions,
    AttentionPlan,
    KVCache,
    LayerFacts,
    attend_by_segments,
)
from prefopt.engine.layout import Segment

PROMPT, BRANCH, DEEPER, ALONE = Segment(3), Segment(2, (0,)), Segment(4, (0, 1)), Segment(1)


def test_starts_depths_and_paths_of_a_row():
    plan = AttentionPlan((PROMPT, BRANCH, DEEPER, ALONE), attend_by_segments)
    assert plan.starts.tolist() == [0, 3, 5, 9, 10]
    assert plan.depths.tolist() == [0, 3, 5, 0]
    assert plan.path(2) == (0, 1, 2)
    assert plan.path(3) == (3,)
    assert (plan.first, plan.query_offset) == (0, 0)
    assert plan.key_places((0, 2)).tolist() == [0, 1, 2, 5, 6, 7, 8]


def test_segments_of_a_cache_come_first_and_are_not_queried():
    plan = AttentionPlan((DEEPER,), attend_by_segments, read_cache=KVCache((PROMPT, BRANCH)))
    assert plan.segments == (PROMPT, BRANCH, DEEPER)
    assert (plan.first, plan.query_offset) == (2, 5)
    assert plan.depths.tolist() == [0, 3, 5]


def test_a_row_writes_each_layer_to_a_cache_and_a_later_row_reads_it():
    cache = KVCache((PROMPT,))
    first = AttentionPlan((PROMPT,), attend_by_segments, write_cache=cache)
    layers = [torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(2)]
    for layer in layers:
        key, value = first.layer(layer, 2 * layer)
        assert key is layer
    assert first.calls == 2
    second = AttentionPlan((BRANCH,), attend_by_segments, read_cache=cache)
    new = torch.randn(1, 2, 2, 4)
    for layer in layers:
        key, value = second.layer(new, -new)
        assert torch.equal(key, torch.cat([layer, new], 2))
        assert torch.equal(value, torch.cat([2 * layer, -new], 2))
        assert not key.requires_grad


def test_an_empty_cache_adds_nothing():
    plan = AttentionPlan((ALONE,), attend_by_segments, read_cache=KVCache(()))
    key = torch.ones(1, 1, 1, 2)
    assert plan.layer(key, key)[0] is key
    assert plan.query_offset == 0


def test_what_a_layer_requires_is_read_from_its_call():
    query, value = torch.zeros(1, 8, 5, 16), torch.zeros(1, 2, 5, 12)
    options = AttentionOptions(0.25, window=7, softcap=30.0, sinks=torch.zeros(8))
    assert LayerFacts.of(query, value, options) == LayerFacts(8, 2, 16, 12, 0.25, 7, 30.0, True)
    assert not LayerFacts.of(query, value, AttentionOptions()).sinks
