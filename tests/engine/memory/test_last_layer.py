"""The last MLP sees what predicts something, and nothing that matters changes."""

import pytest
import torch

from prefopt.engine import Scorer, forward
from prefopt.engine.memory.last_layer import last_mlp, only_at
from tests.engine.trees import batch_of, gradients, trees
from tests.models import tiny_model


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_log_probs_and_gradients_are_those_of_all_tokens(monkeypatch, layout):
    model = tiny_model("llama")
    scorer = Scorer(model, layout)
    batch = batch_of(trees(), layout)
    tokens = []
    model.model.layers[-1].mlp.down_proj.register_forward_hook(
        lambda layer, arguments, output: tokens.append(output.shape[:-1].numel())
    )
    spared = scorer.score(batch).logps
    mine = gradients(model, spared)
    monkeypatch.setattr(forward, "last_mlp", lambda backbone: None)
    everywhere = scorer.score(batch).logps
    theirs = gradients(model, everywhere)
    assert tokens == [len(batch.hidden_positions), batch.input_ids.numel()]
    assert tokens[0] < tokens[1]
    torch.testing.assert_close(spared, everywhere, rtol=1e-6, atol=1e-5)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_the_module_is_as_it_was_afterwards():
    mlp = tiny_model("llama").model.layers[-1].mlp
    hidden = torch.randn(2, 5, 32)
    whole = mlp(hidden)
    with only_at(mlp, torch.tensor([1, 7])):
        some = mlp(hidden).flatten(0, 1)
    assert (some[[0, 2, 3, 4, 5, 6, 8, 9]] == 0).all()
    torch.testing.assert_close(some[[1, 7]], whole.flatten(0, 1)[[1, 7]])
    torch.testing.assert_close(mlp(hidden), whole)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2", "phi3", "cohere"])
def test_dense_layers_have_one(name):
    assert last_mlp(tiny_model(name).base_model) is not None


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "mamba", "opt"])
def test_routers_must_see_every_token_and_some_layers_have_none(name):
    assert last_mlp(tiny_model(name).base_model) is None


def test_checkpointed_layers_are_left_alone():
    model = tiny_model("llama")
    model.gradient_checkpointing_enable()
    assert last_mlp(model.base_model) is None
