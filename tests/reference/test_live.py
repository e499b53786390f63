"""Live references: what they are, and that scoring with them leaves the policy as it is."""

import numpy as np
import pytest
import torch

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.reference.live import (
    AdapterOff,
    FrozenCopy,
    MovingCopy,
    ReferenceModel,
    adapter_starts_as_identity,
)
from tests.models import move, tiny_model

peft = pytest.importorskip("peft")


@pytest.fixture
def batch():
    tokens = np.arange(3, 20)
    return build_layout([Example(tokens[:5], [tokens[5:9], tokens[9:]])])


def lora(trained=False, **options):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], **options)
    model = peft.get_peft_model(tiny_model("llama"), config)
    if trained:
        move(model)
    return model


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


@pytest.mark.parametrize("kind", [AdapterOff, FrozenCopy])
def test_a_model_that_is_asked_predicts_as_the_reference_inside(kind):
    policy = lora()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        start = policy(input_ids=ids).logits
    reference = kind(Scorer(policy))
    move(policy).train()
    with reference.asked() as model:
        assert not model.training
        torch.testing.assert_close(model(input_ids=ids).logits, start)
    assert policy.training
    assert not torch.allclose(policy.eval()(input_ids=ids).logits, start)


def test_dropout_is_off_while_the_reference_scores(batch):
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    reference = ReferenceModel(Scorer(model))
    first, second = (reference.score(batch).per_token_logps for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert model.training


# A moving copy ------------------------------------------------------------------------------------


def set_all(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)


def test_a_moving_copy_is_mixed_with_the_policy():
    """arXiv:2404.09656: reference <- alpha policy + (1 - alpha) reference; by hand, twice."""
    model = tiny_model("llama")
    set_all(model, 1.0)
    copy = MovingCopy(Scorer(model, "padded"))
    set_all(model, 3.0)
    copy.follow(0.6)  # 0.6 * 3 + 0.4 * 1
    for weight in copy.weights().values():
        torch.testing.assert_close(weight, torch.full_like(weight, 2.2))
    set_all(model, -1.0)
    copy.follow(0.25)  # 0.25 * -1 + 0.75 * 2.2
    for weight in copy.weights().values():
        torch.testing.assert_close(weight, torch.full_like(weight, 1.4))


def test_a_moving_copy_scores_as_what_it_is_now(batch):
    model = tiny_model("llama")
    scorer = Scorer(model)
    copy = MovingCopy(scorer)
    start = scorer.score(batch).per_token_logps.detach()
    move(model)
    moved = scorer.score(batch).per_token_logps.detach()
    torch.testing.assert_close(copy.score(batch).per_token_logps, start)
    copy.follow(1.0)
    torch.testing.assert_close(copy.score(batch).per_token_logps, moved)
    assert (moved - start).abs().max() > 1e-3


def test_of_an_adapter_only_what_is_trained_is_copied():
    model = lora()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(MovingCopy(Scorer(model)).weights()) == names


def test_a_moving_copy_may_start_as_another_model(batch):
    model, other = tiny_model("llama"), tiny_model("llama", seed=5)
    model.model.embed_tokens.requires_grad_(False)  # what is not trained differs too
    copy = MovingCopy(Scorer(model), dict(other.named_parameters()))
    wanted = Scorer(other).score(batch).per_token_logps.detach()
    torch.testing.assert_close(copy.score(batch).per_token_logps, wanted)
    assert not any(weight is p for weight in copy.weights().values() for p in other.parameters())


def test_weights_of_another_kind_of_model_cannot_be_mixed():
    model = tiny_model("llama")
    larger = dict(tiny_model("llama", intermediate_size=48).named_parameters())
    with pytest.raises(ValueError, match=r"ref_model and the policy differ: .* has another shape"):
        MovingCopy(Scorer(model), larger)
    with pytest.raises(ValueError, match="is in one of them only"):
        MovingCopy(Scorer(model), dict(lora().named_parameters()))


def test_a_saved_moving_copy_comes_back_only_into_the_same_model(batch):
    model = tiny_model("llama")
    copy = MovingCopy(Scorer(model))
    move(model)
    copy.follow(0.3)
    wanted = copy.score(batch).per_token_logps
    saved = {name: weight.clone() for name, weight in copy.weights().items()}
    again = MovingCopy(Scorer(model))
    again.restore(saved)
    torch.testing.assert_close(again.score(batch).per_token_logps, wanted, rtol=0, atol=0)
    saved.pop("lm_head.weight")
    with pytest.raises(ValueError, match=r"saved reference and the policy differ: lm_head.weight"):
        again.restore(saved)
