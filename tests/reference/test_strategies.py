"""Live references: what they are, and that scoring with them leaves the policy as it is."""

import numpy as np
import pytest
import torch

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.engine.score import layout_tensors
from prefopt.reference import (
    AdapterOff,
    FrozenCopy,
    ReferenceModel,
    adapter_starts_as_identity,
)
from tests.models import tiny_model

peft = pytest.importorskip("peft")


@pytest.fixture
def batch():
    tokens = np.arange(3, 20)
    return layout_tensors(build_layout([Example(tokens[:5], [tokens[5:9], tokens[9:]])]))


def lora(trained=False, **options):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], **options)
    model = peft.get_peft_model(tiny_model("llama"), config)
    if trained:
        move(model)
    return model


def move(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def test_a_given_model_is_scored_as_it_is(batch):
    model = tiny_model("llama", seed=7)
    wanted = Scorer(model).score(batch).per_token_logps
    got = ReferenceModel(Scorer(model)).score(batch).per_token_logps
    torch.testing.assert_close(got, wanted.detach())
    assert not got.requires_grad


def test_switching_the_adapter_off_gives_the_base_model(batch):
    model = lora(trained=True)
    base = Scorer(tiny_model("llama")).score(batch).per_token_logps
    scorer = Scorer(model)
    got = AdapterOff(scorer).score(batch).per_token_logps
    torch.testing.assert_close(got, base.detach(), rtol=1e-5, atol=1e-5)
    assert (scorer.score(batch).per_token_logps - got).abs().max() > 1e-3


@pytest.mark.parametrize("adapter", [True, False])
def test_a_frozen_copy_stays_where_the_policy_began(batch, adapter):
    model = lora(trained=True) if adapter else tiny_model("llama")
    scorer = Scorer(model)
    reference = FrozenCopy(scorer)
    start = scorer.score(batch).per_token_logps.detach()
    move(model)
    moved = scorer.score(batch).per_token_logps.detach()
    torch.testing.assert_close(reference.score(batch).per_token_logps, start)
    torch.testing.assert_close(scorer.score(batch).per_token_logps.detach(), moved)


def test_a_frozen_copy_leaves_gradients_to_the_policy(batch):
    model = tiny_model("llama")
    scorer = Scorer(model)
    reference = FrozenCopy(scorer)
    scores = scorer.score(batch).logps
    reference.score(batch)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_only_an_adapter_that_begins_as_nothing_may_be_switched_off():
    assert adapter_starts_as_identity(Scorer(lora()))
    assert not adapter_starts_as_identity(Scorer(lora(trained=True)))


def test_dropout_is_off_while_the_reference_scores(batch):
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    reference = ReferenceModel(Scorer(model))
    first, second = (reference.score(batch).per_token_logps for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert model.training
