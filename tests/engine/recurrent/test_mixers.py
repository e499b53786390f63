"""Recurrent mixers with their forward passes replaced: what else a model does stays as it was."""

import copy
import pickle

import pytest
import torch
from torch import nn

from prefopt.engine import Scorer
from prefopt.engine.recurrent.mixers import WaveForward, install, is_mixer, remove
from tests.engine.trees import assert_equal_gradients, batch_of, gradients, trees
from tests.models import tiny_model


def replaced(model):
    return [it for it in model.modules() if isinstance(vars(it).get("forward"), WaveForward)]


@pytest.fixture(scope="module")
def shared():
    """A model whose mixers run in waves, and its scorer."""
    model = tiny_model("qwen3_next")
    return model, Scorer(model)


def test_one_mixer_of_each_recurrent_layer_is_found():
    model = tiny_model("zamba2")
    names = [name for name, it in model.named_modules() if is_mixer(it)]
    assert len(names) == 3
    assert all(name.endswith("mamba") for name in names)
    assert not any(is_mixer(it) for it in tiny_model("llama").modules())


def test_a_plain_batch_is_computed_as_without(shared):
    model, _ = shared
    text = torch.arange(5, 17)[None]
    with torch.no_grad():
        assert torch.equal(model(text).logits, tiny_model("qwen3_next")(text).logits)


def test_generation_goes_on_from_the_models_own_cache(shared):
    model, _ = shared
    text = torch.arange(5, 17)[None]
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(text)}
    found = model.generate(text, **options)
    assert torch.equal(found, tiny_model("qwen3_next").generate(text, **options))


def test_a_second_scorer_finds_the_mixers_as_they_are(shared):
    model, scorer = shared
    before = [vars(it)["forward"] for it in replaced(model)]
    assert before == install(model)
    assert len(before) == 1
    assert scorer.layout == "shared_prefix"


def test_a_copy_has_mixers_of_its_own(shared):
    model, scorer = shared
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        other.model.layers[0].linear_attn.out_proj.weight.zero_()
        batch = batch_of(trees(), "shared_prefix")
        wanted = scorer.score(batch).logps
        assert (Scorer(other).score(batch).logps - wanted).abs().max() > 1e-2
        assert torch.equal(scorer.score(batch).logps, wanted)
        assert torch.equal(Scorer(copy.deepcopy(model)).score(batch).logps, wanted)


def test_a_model_that_stays_padded_has_its_own_mixers():
    model = tiny_model("jamba")
    assert any(is_mixer(it) for it in model.modules())
    assert Scorer(model).layout == "padded"
    assert not replaced(model)
    assert not any(it._forward_pre_hooks for it in model.modules())


def test_what_was_replaced_before_is_put_back():
    layer = nn.Module()
    layer.mixer = tiny_model("lfm2").model.layers[0].conv
    ours = layer.mixer.forward
    layer.mixer.forward = ours
    remove(install(layer))
    assert vars(layer.mixer)["forward"] is ours


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["mamba2", "lfm2"])
def test_checkpointed_layers_run_again_in_waves(name, reentrant):
    model = tiny_model(name).train()
    scorer = Scorer(model)
    batch = batch_of(trees(), scorer.layout)
    wanted = gradients(model, scorer.score(batch).logps)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_equal_gradients(gradients(model, scorer.score(batch).logps), wanted)
