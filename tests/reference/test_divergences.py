"""Divergences of a policy from every live reference, though both may be one module."""

import pytest
import torch

from prefopt.engine import Scorer
from prefopt.reference.live import AdapterOff, FrozenCopy, MovingCopy, ReferenceModel
from tests.engine.test_divergences import plain_divergences
from tests.engine.trees import assert_equal_gradients, batch_of, gradients, trees
from tests.models import move, tiny_model

peft = pytest.importorskip("peft")


def assert_diverges_as(model, scorer, reference, wanted_reference):
    """Compare with full logits of the policy and of a model of its own that is the reference."""
    batch = batch_of(trees(), scorer.layout)
    wanted = plain_divergences(model, wanted_reference, trees())
    wanted_gradients = gradients(model, wanted)
    assert wanted.max() > 0.1
    given = reference.score(batch, keep_predictions=True)
    scores = scorer.score(batch, divergence_from=given.predictions)
    torch.testing.assert_close(scores.divergences, wanted, rtol=1e-5, atol=1e-5)
    assert_equal_gradients(gradients(model, scores.divergences), wanted_gradients)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("kind", [AdapterOff, FrozenCopy, MovingCopy])
def test_of_a_lora_policy(kind, targets):
    config = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=True)
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    scorer = Scorer(model)
    reference = kind(scorer)
    move(model)
    assert_diverges_as(model, scorer, reference, tiny_model("llama"))


@pytest.mark.parametrize("kind", [FrozenCopy, MovingCopy])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_of_a_policy_that_is_trained_as_a_whole(name, kind):
    model = tiny_model(name)
    scorer = Scorer(model)
    reference = kind(scorer)
    move(model)
    assert_diverges_as(model, scorer, reference, tiny_model(name))


def test_of_a_head_that_is_trained_in_full_beside_an_adapter():
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lm_head"])
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    scorer = Scorer(model)
    reference = AdapterOff(scorer)
    move(model)
    assert_diverges_as(model, scorer, reference, tiny_model("llama"))


def test_from_an_adapter_that_had_been_trained_before():
    config = peft.LoraConfig(target_modules=["lm_head"], r=2)
    models = [peft.get_peft_model(tiny_model("llama"), config).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        move(model)
    policy, twin = models
    scorer = Scorer(policy)
    reference = FrozenCopy(scorer)
    move(policy)
    assert_diverges_as(policy, scorer, reference, twin)


def test_from_a_model_of_another_architecture():
    model, other = tiny_model("llama"), tiny_model("gemma2")
    assert_diverges_as(model, Scorer(model), ReferenceModel(Scorer(other)), other)


def test_nothing_is_kept_that_was_not_asked_for():
    scorer = Scorer(tiny_model("llama"))
    assert FrozenCopy(scorer).score(batch_of(trees(), scorer.layout)).predictions is None
