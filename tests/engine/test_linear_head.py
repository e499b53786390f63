"""Logits of a linear head in blocks of rows, and gradients summed over the blocks."""

import pytest
import torch
from torch import nn

from prefopt.engine.linear_head import HeadGradients, LinearHead, is_bare_linear, rows_within


def test_rows_within_counts_float32_logits_and_is_16_at_least():
    assert rows_within(4 * 1000 * 50, 1000) == 50
    assert rows_within(100, 1000) == 16


@pytest.mark.parametrize(
    ("rows", "stored_rows", "expected"),
    [
        (7, 0, [(0, 3), (3, 6), (6, 7)]),
        (7, 2, [(0, 2), (2, 5), (5, 7)]),
        (2, 5, [(0, 2)]),
        (0, 0, []),
    ],
)
def test_blocks_begin_with_the_rows_whose_logits_are_stored(rows, stored_rows, expected):
    head = LinearHead(1.0, None, torch.float32, chunk_rows=3, stored_rows=stored_rows)
    assert [(block.start, block.stop) for block in head.blocks(rows)] == expected


def test_a_layer_with_anything_of_its_own_is_not_bare():
    assert is_bare_linear(nn.Linear(2, 3))
    assert not is_bare_linear(nn.Bilinear(2, 2, 3))
    hooked, patched, masked = (nn.Linear(2, 3) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    patched.forward = lambda hidden: hidden
    nn.utils.parametrizations.orthogonal(masked)
    assert not any(map(is_bare_linear, (hooked, patched, masked)))


def test_logits_are_scaled_before_they_are_capped():
    head = LinearHead(0.5, 2.0, torch.float64, chunk_rows=4)
    hidden, weight = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, -1.0]]).double()
    logits = head.logits(hidden, weight, torch.tensor([1.0]).double())
    expected = 2.0 * torch.tanh(torch.tensor(0.5 * (3.0 - 2.0 + 1.0) / 2.0).double())
    torch.testing.assert_close(logits, expected.view(1, 1))


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradients_over_blocks_are_those_of_autograd(softcap):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((5, 3), (4, 3), (4,)))
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    per_logit, incoming = torch.randn(5, 4).double(), torch.randn(5).double()
    head = LinearHead(0.7, softcap, torch.float64, chunk_rows=2)
    logits = 0.7 * (hidden @ weight.T + bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    values = (logits * per_logit).sum(-1)
    expected = torch.autograd.grad((values * incoming).sum(), inputs)
    with torch.no_grad():
        gradients = HeadGradients(head, hidden, weight, bias, (True, True, True))
        for block in head.blocks(len(hidden)):
            slope = head.slope(gradients.logits(block))
            gradients.add(
                block, head.raw_gradient(per_logit[block].clone(), slope), incoming[block]
            )
    for ours, wanted in zip(gradients.result(), expected, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_gradients_that_are_not_wanted_are_none_and_of_no_rows_zero():
    head = LinearHead(1.0, None, torch.float32, chunk_rows=2)
    hidden, weight = torch.zeros(0, 3), torch.ones(4, 3)
    of_hidden, of_weight, of_bias = HeadGradients(
        head, hidden, weight, None, (False, True, True)
    ).result()
    assert of_hidden is None
    assert of_bias is None
    assert torch.equal(of_weight, torch.zeros(4, 3))
