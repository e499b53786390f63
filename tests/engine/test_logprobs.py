"""Chunked log-probs equal the plain computation, forward and backward."""

import pytest
import torch
from torch import nn

from prefopt.engine import logprobs
from prefopt.engine.logprobs import LMHead, chunked_logps


def plain(hidden, weight, targets, bias=None, scale=1.0, softcap=None):
    logits = hidden @ weight.T
    logits = logits if bias is None else logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def inputs(dtype=torch.float64, rows=11, width=5, vocabulary=13, bias=True):
    generator = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return make(rows, width), make(vocabulary, width), targets, make(vocabulary) if bias else None


@pytest.mark.parametrize(
    ("chunk_rows", "stored_rows"), [(1, 0), (4, 0), (4, 3), (11, 5), (100, 50)]
)
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (2.0, 1.5)])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_to_the_plain_computation(chunk_rows, stored_rows, scale, softcap, bias):
    hidden, weight, targets, offset = inputs(bias=bias)
    leaves = [leaf for leaf in (hidden, weight, offset) if leaf is not None]
    upstream = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    ours = chunked_logps(
        hidden,
        weight,
        targets,
        bias=offset,
        scale=scale,
        softcap=softcap,
        chunk_rows=chunk_rows,
        stored_rows=stored_rows,
    )
    theirs = plain(hidden, weight, targets, offset, scale, softcap)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, wanted in zip(
        torch.autograd.grad((ours * upstream).sum(), leaves),
        torch.autograd.grad((theirs * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


def test_kept_logits_serve_one_backward_and_are_computed_again_for_a_second():
    hidden, weight, targets, _ = inputs(bias=False)
    loss = chunked_logps(hidden, weight, targets, chunk_rows=2, stored_rows=5).sin().sum()
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(again, once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stored_rows", [0, 2])
def test_the_hand_written_backward_passes_gradcheck(stored_rows):
    hidden, weight, targets, bias = inputs(rows=4, vocabulary=6)

    def function(hidden, weight, bias):
        return chunked_logps(
            hidden,
            weight,
            targets,
            bias=bias,
            scale=0.7,
            softcap=2.0,
            chunk_rows=3,
            stored_rows=stored_rows,
        )

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets, _ = inputs(bias=False)
    weight.requires_grad_(False)
    chunked_logps(hidden, weight, targets).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_bfloat16_is_summed_in_float32():
    hidden, weight, targets, _ = inputs(torch.bfloat16, vocabulary=500, bias=False)
    ours = chunked_logps(hidden, weight, targets)
    assert ours.dtype == torch.float32
    exact = plain(hidden.double(), weight.double(), targets)
    # bfloat16 keeps 8 bits of each logit; measured 0.010 nats here.
    assert (ours.double() - exact).abs().max() < 0.02


def test_autocast_multiplies_in_bfloat16_in_both_directions():
    hidden, weight, targets, _ = inputs(torch.float32, rows=40, width=16, vocabulary=50, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = chunked_logps(hidden, weight, targets)
    assert ours.dtype == torch.float32
    ours.sum().backward()
    wanted = torch.autograd.grad(plain(hidden, weight, targets).sum(), [hidden, weight])
    for mine, exact in zip((hidden.grad, weight.grad), wanted, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - exact).norm() < 0.02 * exact.norm()  # measured 0.005


@pytest.mark.parametrize("kind", ["hook", "subclass"])
def test_a_head_that_is_not_a_bare_linear_runs_its_own_forward(kind, monkeypatch):
    """LoRA, quantised and offloaded heads are modules of their own: they must be called."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * 13 * 20)  # several chunks
    monkeypatch.setattr(logprobs, "STORED_BYTES", 4 * 13 * 20)
    head = (Doubled if kind == "subclass" else nn.Linear)(5, 13).double()
    if kind == "hook":
        head.register_forward_hook(lambda module, args, output: 2 * output)
    hidden, _, targets, _ = inputs(rows=50)
    ours = LMHead(head).logps(hidden, targets)
    wanted = plain(hidden, head.weight, targets, head.bias, scale=2.0)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(ours.sum(), [hidden, head.weight])
    exact = torch.autograd.grad(wanted.sum(), [hidden, head.weight])
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_no_tensor_of_tokens_by_vocabulary_is_kept(monkeypatch):
    """The graph keeps the hidden states and one number a token, never logits."""
    hidden, weight, targets, _ = inputs(torch.float32, rows=64, vocabulary=1000, bias=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        chunked_logps(hidden, weight, targets, chunk_rows=8)
    assert max(kept) == weight.numel()
    assert sum(kept) < weight.numel() + hidden.numel() + 3 * 64


def test_a_model_without_an_output_layer_is_an_error():
    class Headless(nn.Module):
        def get_output_embeddings(self):
            return None

    with pytest.raises(ValueError, match="Headless has no output embeddings"):
        LMHead.of(Headless())
