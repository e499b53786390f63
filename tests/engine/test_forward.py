"""One forward pass: what is returned, from which rows, and through a parallel wrapper."""

import numpy as np
import pytest
import torch
from torch import nn

from prefopt.engine import attention
from prefopt.engine.forward import Forward, ForwardOutput, Requested, through_wrapper
from prefopt.engine.layout import Example, build_layout
from prefopt.engine.token_statistics import StatisticsCollector
from tests.engine.trees import batch_of, trees
from tests.models import tiny_model


def forward_of(name="llama", packed=True):
    forward = Forward(tiny_model(name))
    if packed:
        forward.causal_lm.set_attn_implementation(attention.NAME)
    return forward


def test_log_probs_of_padded_rows_are_those_of_the_models_logits():
    forward, batch = forward_of(packed=False), batch_of(trees(), "padded")
    logits = forward.model(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    logps = logits.log_softmax(-1).flatten(0, 1)[batch.predict_positions, batch.target_ids]
    torch.testing.assert_close(forward(batch).logps, logps)


def test_without_a_head_the_models_own_logits_give_the_same():
    forward, batch = forward_of(packed=False), batch_of(trees(), "padded")
    wanted = forward(batch, Requested(predictions=True))
    forward.head = None
    output = forward(batch, Requested(predictions=True))
    torch.testing.assert_close(output.logps, wanted.logps)
    rows = slice(0, len(output.logps))
    torch.testing.assert_close(output.predictions.reader()(rows), wanted.predictions.reader()(rows))


def test_only_what_is_requested_is_computed():
    forward, batch = forward_of(), batch_of(trees(), "shared_prefix")
    plain = forward(batch)
    assert plain[1:] == (None,) * 4
    collector = StatisticsCollector(["entropies"])
    output = forward(batch, Requested(collector=collector, predictions=True))
    assert torch.equal(output.logps, plain.logps)
    assert len(output.predictions.hidden) == len(plain.logps)
    own = forward(batch, Requested(divergence_from=output.predictions)).divergences
    torch.testing.assert_close(own, torch.zeros_like(plain.logps), atol=1e-5, rtol=0)


def test_the_attention_layers_of_a_packed_row_are_described():
    forward = forward_of()
    assert forward.layers_seen == frozenset()
    forward(batch_of(trees(), "shared_prefix"))
    (facts,) = forward.layers_seen
    assert facts.heads == forward.causal_lm.config.num_attention_heads


def test_a_packed_row_needs_attention_layers_that_call_our_function():
    with pytest.raises(NotImplementedError, match="no attention layer reached"):
        forward_of(packed=False)(batch_of(trees(), "shared_prefix"))


def test_a_batch_without_a_predicting_token_has_zero_gradients():
    empty = np.zeros(0, dtype=np.int64)
    batch = build_layout([Example(empty, [np.array([5])])])
    forward = forward_of()
    output = forward(batch, Requested(predictions=True))
    assert output.logps.shape == (0,)
    assert output.predictions.hidden.shape == (0, forward.causal_lm.config.hidden_size)
    output.logps.sum().backward()
    assert all((weight.grad == 0).all() for weight in forward.model.parameters())


# Through a parallel wrapper -----------------------------------------------------------------------


class Wrapper(nn.Module):
    """Doubles log-probs, so that it shows that its forward pass ran."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens):
        output = self.inner(tokens)
        return output._replace(logps=2 * output.logps)


class Inner(nn.Module):
    def forward(self, tokens):
        return tokens


def test_the_wrapper_runs_around_the_computation_once():
    inner = Inner()
    tokens = torch.ones(3)
    output = through_wrapper(Wrapper(inner), inner, lambda: ForwardOutput(tokens), tokens)
    assert output.logps.tolist() == [2, 2, 2]
    assert "forward" not in vars(inner)
    assert inner(tokens) is tokens


def test_without_a_wrapper_the_computation_runs_alone():
    inner = Inner()
    for wrapped in (None, inner):
        output = through_wrapper(wrapped, inner, lambda: ForwardOutput(torch.ones(1)))
        assert output.logps.tolist() == [1]


def test_a_forward_pass_set_on_the_instance_comes_back_after_an_error():
    inner = Inner()
    inner.forward = own = lambda tokens: tokens

    def fail():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        through_wrapper(Wrapper(inner), inner, fail, torch.ones(1))
    assert vars(inner)["forward"] is own
