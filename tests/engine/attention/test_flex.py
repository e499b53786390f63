"""Flex: on a CPU uncompiled and forward only; on a GPU compiled, with gradients.

The uncompiled function asks the mask about every pair of tokens and never looks at the lists of
blocks, which are therefore compared with the mask here.
"""

import numpy as np
import pytest
import torch

from prefopt.engine.attention import AttentionOptions, attend_by_segments, attend_flex
from prefopt.engine.attention import flex as module
from prefopt.engine.attention.flex import BLOCK, make_block_mask
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

SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])

CAPS_AND_SINKS = {
    "softcap": AttentionOptions(softcap=1.5),
    "sinks": AttentionOptions(sinks=SINKS),
    "all": AttentionOptions(scaling=0.7, window=5, softcap=1.5, sinks=SINKS),
}

ALL_OPTIONS = OPTIONS | CAPS_AND_SINKS

uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")


def assert_equal(segments, options, kept=0, width=8):
    query, key, value = (
        tensor.detach() for tensor in tensors(segments, dtype=torch.float32, width=width)
    )
    queries = queries_of(query, segments, kept)
    got = attend_flex(queries, key, value, plan_of(segments, attend_flex, kept), options)
    wanted = naive(queries, key, value, segments, options)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@uncompiled
@pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=list(ALL_OPTIONS))
@pytest.mark.parametrize("name", [name for name in ROWS if name != "long"])
def test_flex_equals_attention_by_hand(name, options):
    assert_equal(ROWS[name], options)


@uncompiled
@pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=list(ALL_OPTIONS))
@pytest.mark.parametrize("kept", [1, 6])
def test_a_row_continues_an_earlier_one(options, kept):
    assert_equal(ROWS["deep"], options, kept)


@uncompiled
@pytest.mark.parametrize("seed", range(5))
def test_random_trees_equal_attention_by_hand(seed):
    generator = np.random.default_rng(seed)
    window = [None, 1, 3, 8][int(generator.integers(0, 4))]
    assert_equal(random_row(generator), AttentionOptions(window=window))


@uncompiled
def test_values_may_be_of_another_width():
    query, key, value = (t.detach() for t in tensors(ROWS["deep"], dtype=torch.float32))
    narrow = value[..., :4]
    got = attend_flex(query, key, narrow, plan_of(ROWS["deep"], attend_flex), AttentionOptions())
    wanted = naive(query, key, narrow, ROWS["deep"], AttentionOptions())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def long_row(generator):
    """Return a row of several blocks; segments end within blocks, at their borders, and beyond."""
    lengths = generator.choice([1, 60, 128, 200, 256, 300], size=8)
    ancestors = [(), (0,), (0, 1), (0, 1), (0,), (), (5,), (5,)]
    return tuple(Segment(int(n), path) for n, path in zip(lengths, ancestors, strict=True))


@pytest.mark.parametrize("window", [None, 1, 100, 255, 256])
@pytest.mark.parametrize("kept", [0, 1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_listed_as_the_mask_function_sees_them(seed, kept, window):
    plan = plan_of(long_row(np.random.default_rng(seed)), attend_flex, kept)
    mask = make_block_mask(plan, window, torch.device("cpu"))
    queries, keys = mask.seq_lengths
    q, k = torch.arange(queries)[:, None], torch.arange(keys)[None]
    seen = mask.mask_mod(torch.tensor(0), torch.tensor(0), q, k)
    # Which queries are padding is nobody's concern.
    real = int(plan.starts[-1]) - plan.query_offset
    blocks = seen.view(queries // BLOCK, BLOCK, keys // BLOCK, BLOCK).transpose(1, 2)
    real_rows = torch.arange(queries).view(-1, 1, BLOCK, 1) < real
    some = (blocks & real_rows).any(-1).any(-1)
    every = blocks.all(-1).all(-1) & real_rows.all(2)[..., 0]
    listed, whole = (
        dense(mask.kv_num_blocks, mask.kv_indices),
        dense(mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    assert not (listed & whole).any()
    assert (whole == every).all()
    filled = -(-real // BLOCK)
    assert ((listed | whole)[:filled] == some[:filled]).all()


def dense(counts, indices):
    """Return lists of blocks as a matrix."""
    matrix = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        matrix[row, columns[:count].long()] = True
    return matrix


@pytest.mark.parametrize("tokens", [1, 128, 129, 256, 257])
def test_rows_are_padded_to_two_blocks_or_more(tokens):
    plan = plan_of((Segment(tokens),), attend_flex)
    mask = make_block_mask(plan, None, torch.device("cpu"))
    assert mask.seq_lengths == (max(256, -(-tokens // 128) * 128),) * 2


def test_dropout_is_left_to_segments():
    options = AttentionOptions(dropout=0.5)
    inputs = tensors(ROWS["pair"])
    torch.manual_seed(1)
    got = attend_flex(*inputs, plan_of(ROWS["pair"], attend_flex), options)
    torch.manual_seed(1)
    wanted = attend_by_segments(*inputs, plan_of(ROWS["pair"], attend_by_segments), options)
    torch.testing.assert_close(got, wanted)


@pytest.mark.slow
def test_one_compilation_serves_rows_of_all_lengths_and_windows(monkeypatch):
    """A number of compilations that grows would end at dynamo's limit, in uncompiled attention."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = module._compiled(backend=counter)
    monkeypatch.setattr(module, "_function", lambda device: compiled)
    counts = []
    for seed in range(6):
        row = long_row(np.random.default_rng(seed))[: 8 - seed]
        inputs = [tensor.detach() for tensor in tensors(row, dtype=torch.float32)]
        for window in (None, 100 + seed):
            options = AttentionOptions(window=window, softcap=2.0, scaling=0.3)
            attend_flex(*inputs, plan_of(row, attend_flex), options)
        counts.append(counter.frame_count)
    # The first row is compiled as it is, the second for all lengths.
    assert counts == [1, 2, 2, 2, 2, 2]


@pytest.mark.slow
def test_a_process_may_see_more_models_than_dynamo_compiles_by_default(monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    with torch._dynamo.config.patch(recompile_limit=8):
        compiled = module._compiled(backend=counter)
        monkeypatch.setattr(module, "_function", lambda device: compiled)
        for number in range(12):
            row = ROWS["pair"]
            inputs = [tensor.detach() for tensor in tensors(row, width=16 + 8 * number)]
            options = AttentionOptions(softcap=1.0 + number)  # a function of its own
            attend_flex(*inputs, plan_of(row, attend_flex), options)
    assert counter.frame_count == 12


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=list(ALL_OPTIONS))
@pytest.mark.parametrize("name", ["deep", "long"])
def test_on_a_gpu_flex_equals_segments_in_float32(name, options, dtype):
    exact = [
        tensor.detach().to("cuda", dtype).float().requires_grad_()
        for tensor in tensors(ROWS[name], width=64)
    ]
    if options.sinks is not None:
        sinks = options.sinks.cuda().requires_grad_()
        options = AttentionOptions(options.scaling, 0.0, options.window, options.softcap, sinks)
    of = [] if options.sinks is None else [options.sinks]
    ours = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    plan = plan_of(ROWS[name], attend_by_segments)
    wanted = with_gradients(attend_by_segments(*exact, plan, options), exact + of)
    noise = with_gradients(attend_by_segments(*ours, plan, options), ours + of)
    got = with_gradients(attend_flex(*ours, plan, options), ours + of)
    for number, theirs, rounded in zip(got, wanted, noise, strict=True):
        scale = theirs.abs().max()
        # Twice the noise of segments in the same dtype; a kernel that sums blocks in float32 has
        # rounding of its own, of two units or of 1e-5.
        rounding = max(2 * torch.finfo(dtype).eps, 1e-5)
        allowed = 2 * (rounded.float() - theirs).abs().max() + rounding * scale
        assert (number.float() - theirs).abs().max() <= allowed
