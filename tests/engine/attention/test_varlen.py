"""Varlen: the sequences handed to a kernel are the row's; on a GPU, the kernels compute them right.

On a CPU the kernel is one written here, to flash attention's documentation: causal masks and
windows are aligned at the ends of queries and keys.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt.engine.attention import AttentionOptions, attend_by_segments, attend_varlen
from prefopt.engine.attention import varlen as module
from prefopt.engine.attention.varlen import VarlenKernel, make_sequences
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
from tests.runs import waiting_is_an_error

CPU = torch.device("cpu")


def by_the_documentation(
    query, key, value, query_ends, key_ends, most_queries, most_keys, scale=None, window_size=None
):
    """Attend as flash attention documents its varlen function."""
    outputs = []
    groups = query.shape[1] // key.shape[1]
    for number in range(len(query_ends) - 1):
        q = query[query_ends[number] : query_ends[number + 1]]
        k, v = (
            tensor[key_ends[number] : key_ends[number + 1]].repeat_interleave(groups, dim=1)
            for tensor in (key, value)
        )
        assert len(q) <= most_queries
        assert len(k) <= most_keys
        at = torch.arange(len(q))[:, None] + len(k) - len(q)
        keys = torch.arange(len(k))
        left, right = window_size
        seen = keys <= at + right
        if left >= 0:
            seen &= keys >= at - left
        scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


@pytest.fixture
def documented_kernel(monkeypatch):
    run = module._torch_run(by_the_documentation)
    kernel = VarlenKernel("documented", run, softcap=False, dropout=False)
    monkeypatch.setattr(module, "kernels", lambda: (kernel,))
    monkeypatch.setattr(module, "HALF", (torch.float64,))


def assert_equal(segments, options, kept=0):
    inputs = tensors(segments)
    query, key, value = inputs
    queries = queries_of(query, segments, kept)
    plan = plan_of(segments, attend_varlen, kept)
    got = with_gradients(attend_varlen(queries, key, value, plan, options), inputs)
    wanted = with_gradients(naive(queries, key, value, segments, options), inputs)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("documented_kernel")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("name", [name for name in ROWS if name != "long"])
def test_one_call_equals_attention_by_hand(name, options):
    assert_equal(ROWS[name], options)


@pytest.mark.usefixtures("documented_kernel")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("kept", [1, 3, 6])
def test_a_row_continues_an_earlier_one(options, kept):
    assert_equal(ROWS["deep"], options, kept)


@pytest.mark.usefixtures("documented_kernel")
@pytest.mark.parametrize("seed", range(8))
def test_random_trees_equal_attention_by_hand(seed):
    generator = np.random.default_rng(seed)
    window = [None, 1, 3, 8][int(generator.integers(0, 4))]
    assert_equal(random_row(generator), AttentionOptions(window=window))


def test_texts_without_branches_are_not_copied():
    sequences = make_sequences(plan_of(ROWS["texts alone"], attend_varlen), None, CPU)
    assert sequences.gather is None
    assert sequences.query_ends.tolist() == sequences.key_ends.tolist() == [0, 3, 4, 9]


def test_a_branch_that_continues_its_prompt_belongs_to_its_sequence():
    sequences = make_sequences(plan_of(ROWS["pair"], attend_varlen), None, CPU)
    assert sequences.query_ends.tolist() == [0, 13, 19]
    assert sequences.key_ends.tolist() == [0, 13, 28]
    assert sequences.gather.tolist() == [*range(13), *range(9), *range(13, 19)]
    assert (sequences.most_queries, sequences.most_keys) == (13, 15)
    assert all(
        tensor.dtype == torch.int32
        for tensor in (sequences.gather, sequences.query_ends, sequences.key_ends)
    )


def test_a_window_cuts_what_is_gathered():
    sequences = make_sequences(plan_of(ROWS["pair"], attend_varlen), 3, CPU)
    # The second branch begins at position 9 and sees 7, 8 and itself.
    assert sequences.gather.tolist() == [*range(13), 7, 8, *range(13, 19)]


@pytest.mark.usefixtures("documented_kernel")
def test_sequences_are_made_once_for_all_layers_with_one_window(monkeypatch):
    made = []
    original = module.make_sequences

    def count(*args):
        made.append(args[1])
        return original(*args)

    monkeypatch.setattr(module, "make_sequences", count)
    plan = plan_of(ROWS["deep"], attend_varlen)
    for window in (None, 4, None, 4):
        attend_varlen(*tensors(ROWS["deep"]), plan, AttentionOptions(window=window))
    assert made == [None, 4]


def test_what_no_kernel_takes_is_attended_to_by_segments(monkeypatch):
    called = []
    kernel = VarlenKernel("none", lambda *args: called.append(args), softcap=False, dropout=False)
    monkeypatch.setattr(module, "kernels", lambda: (kernel,))
    half = [tensor.bfloat16() for tensor in tensors(ROWS["pair"])]
    for inputs, options in (
        (tensors(ROWS["pair"], dtype=torch.float32), AttentionOptions()),
        (half, AttentionOptions(softcap=2.0)),
    ):
        got = attend_varlen(*inputs, plan_of(ROWS["pair"], attend_varlen), options)
        wanted = attend_by_segments(*inputs, plan_of(ROWS["pair"], attend_by_segments), options)
        torch.testing.assert_close(got, wanted)
    torch.manual_seed(0)
    attend_varlen(*half, plan_of(ROWS["pair"], attend_varlen), AttentionOptions(dropout=0.1))
    assert not called


def test_flash_attn_is_called_by_its_own_names(monkeypatch):
    seen = {}

    def flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, softmax_scale, causal, window_size, softcap
    ):
        seen.update(locals())
        return q

    package = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    module.kernels.cache_clear()
    try:
        assert module.kernels()[-1].name == "flash-attn"
        half = [tensor.bfloat16() for tensor in tensors(ROWS["pair"])]
        options = AttentionOptions(scaling=0.5, dropout=0.1, window=7, softcap=3.0)
        output = attend_varlen(*half, plan_of(ROWS["pair"], attend_varlen), options)
    finally:
        module.kernels.cache_clear()
    assert output.shape == half[0].shape
    names = ("dropout_p", "softmax_scale", "causal", "window_size", "softcap", "max_q", "max_k")
    assert [seen[name] for name in names] == [0.1, 0.5, True, (6, 0), 3.0, 13, 13]


def test_a_function_that_is_missing_or_too_old_is_no_kernel(monkeypatch):
    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        raise AssertionError

    old = SimpleNamespace(varlen_attn=varlen_attn)  # as in torch 2.10
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", old)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    module.kernels.cache_clear()
    try:
        assert module.kernels() == ()
    finally:
        module.kernels.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("name", ["pair", "deep", "long"])
def test_on_a_gpu_kernels_equal_segments_in_float32(name, options, width):
    for dtype in (torch.bfloat16, torch.float16):
        exact = [
            tensor.detach().to("cuda", dtype).float().requires_grad_()
            for tensor in tensors(ROWS[name], width=width)
        ]
        half = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
        plan = plan_of(ROWS[name], attend_by_segments)
        wanted = with_gradients(attend_by_segments(*exact, plan, options), exact)
        noise = with_gradients(attend_by_segments(*half, plan, options), half)
        got = with_gradients(attend_varlen(*half, plan, options), half)
        for ours, theirs, rounded in zip(got, wanted, noise, strict=True):
            scale = theirs.abs().max()
            # Twice the noise of segments in the same dtype, and two roundings of the output.
            allowed = (
                2 * (rounded.float() - theirs).abs().max() + 2 * scale * torch.finfo(dtype).eps
            )
            assert (ours.float() - theirs).abs().max() <= allowed


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_the_device():
    half = [tensor.detach().bfloat16().cuda() for tensor in tensors(ROWS["deep"], width=64)]
    attend_varlen(*half, plan_of(ROWS["deep"], attend_varlen), AttentionOptions())
    with waiting_is_an_error():
        attend_varlen(*half, plan_of(ROWS["deep"], attend_varlen), AttentionOptions(window=4))


def test_an_empty_window_of_keys_never_arises():
    # A window of one token: every query sees itself only, and prompts are not gathered at all.
    row = (Segment(3), Segment(2, (0,)), Segment(2, (0,)))
    sequences = make_sequences(plan_of(row, attend_varlen), 1, CPU)
    assert sequences.gather is None
    assert sequences.key_ends.tolist() == [0, 5, 7]
