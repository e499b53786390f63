"""Below the first trained layer a live reference and the policy are computed once, or apart."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefopt.engine import Scorer
from prefopt.engine.noise import Noise
from prefopt.engine.shared_start import untrained_layers
from prefopt.reference.live import AdapterOff, FrozenCopy, MovingCopy
from tests.engine.trees import batch_of, trees
from tests.models import move, tiny_model

LAYERS = 3


def policy(name="llama", adapted=(2,), **changes):
    """Return a policy with adapters in some layers, which have been trained."""
    model = tiny_model(name, num_hidden_layers=LAYERS, **changes)
    which = "|".join(map(str, adapted))
    config = LoraConfig(r=2, target_modules=rf".*layers\.({which})\..*_proj")
    return move(get_peft_model(model, config)).train()


def frozen_below(model, first):
    """Freeze a model's embeddings and its layers before the first that is trained."""
    for part in (model.get_input_embeddings(), *model.base_model.layers[:first]):
        part.requires_grad_(False)
    return model


class Calls:
    """Counts how often each layer computes."""

    def __init__(self, layers):
        self.counts = [0] * len(layers)
        for number, layer in enumerate(layers):
            layer.self_attn.register_forward_hook(lambda *_, at=number: self._add(at))

    def _add(self, number):
        self.counts[number] += 1

    def taken(self):
        taken, self.counts = self.counts, [0] * len(self.counts)
        return taken


def layers_of(model):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model.layers


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: it.grad.clone() for name, it in model.named_parameters() if it.grad is not None}


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("kind", [AdapterOff, FrozenCopy])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_scores_and_gradients_are_those_of_two_whole_passes(name, kind, layout):
    model = policy(name)
    scorer = Scorer(model, layout)
    reference, batch = kind(scorer), batch_of(trees(), layout)
    whole_reference = reference.score(batch).per_token_logps
    whole = scorer.score(batch)
    wanted = gradients(model, whole.logps.sum())
    for _ in range(2):  # the first proves it
        shared = reference.score(batch, keep_start=True).per_token_logps
        assert torch.equal(shared, whole_reference)
        scores = scorer.score(batch)
        torch.testing.assert_close(scores.per_token_logps, whole.per_token_logps)
        torch.testing.assert_close(gradients(model, scores.logps.sum()), wanted)


def test_the_layers_below_the_first_adapter_are_computed_once():
    model = policy(adapted=[1, 2])
    scorer, batch = Scorer(model), batch_of(trees(), "shared_prefix")
    reference, calls = AdapterOff(scorer), Calls(layers_of(model))
    reference.score(batch, keep_start=True)  # and once more, to prove it
    scorer.score(batch)
    assert calls.taken() == [1, 3, 3]
    reference.score(batch, keep_start=True)
    scorer.score(batch)
    assert calls.taken() == [1, 2, 2]
    scorer.score(batch)  # what was kept is used once
    assert calls.taken() == [1, 1, 1]
    assert not any("forward" in vars(layer) for layer in layers_of(model))


def test_frozen_layers_under_trained_ones_are_computed_once():
    model = frozen_below(tiny_model("llama", num_hidden_layers=LAYERS), 2)
    scorer, batch = Scorer(model), batch_of(trees(), "shared_prefix")
    reference, calls = FrozenCopy(scorer), Calls(layers_of(model))
    start = reference.score(batch).logps
    move(model)
    calls.taken()
    for _ in range(2):
        torch.testing.assert_close(reference.score(batch, keep_start=True).logps, start)
        calls.taken()
        assert (scorer.score(batch).logps - start).abs().max() > 1e-3
    assert calls.taken() == [0, 0, 1]


def test_another_batch_is_computed_whole():
    model = policy()
    scorer, batch = Scorer(model), batch_of(trees(), "shared_prefix")
    same = replace(batch, input_ids=batch.input_ids.clone())
    reference, calls = AdapterOff(scorer), Calls(layers_of(model))
    reference.score(batch, keep_start=True)
    calls.taken()
    scorer.score(same)
    assert calls.taken() == [1, 1, 1]


def test_noise_on_the_embeddings_is_the_policys_alone():
    model = policy()
    scorer, batch, noise = Scorer(model), batch_of(trees(), "shared_prefix"), Noise(5.0, 3)
    wanted = scorer.score(batch, noise=noise).logps
    AdapterOff(scorer).score(batch, keep_start=True)
    torch.testing.assert_close(scorer.score(batch, noise=noise).logps, wanted)


def _checkpointed():
    model = policy()
    model.gradient_checkpointing_enable()
    return model


def _embeddings_trained():
    model = policy()
    model.get_input_embeddings().requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (policy, 2),
        (lambda: policy(adapted=[0, 1, 2]), 0),
        (lambda: policy(adapted=[1]), 1),
        (_embeddings_trained, 0),
        (_checkpointed, 0),
        (lambda: policy(attention_dropout=0.1), 0),
        (lambda: tiny_model("llama"), 0),
        (lambda: frozen_below(tiny_model("llama"), 1), 1),
        (lambda: tiny_model("llama").requires_grad_(False), 2),
    ],
)
def test_which_layers_are_shared(make, count):
    model = make()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert len(untrained_layers(inner.base_model)) == count


def test_layers_that_later_ones_look_back_to_are_computed():
    """As where later layers attend to keys of earlier ones."""
    model = policy()
    layers = layers_of(model)
    seen = []
    layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))

    def looks_back(module, given, output):
        return output * seen.pop()

    layers[2].self_attn.o_proj.register_forward_hook(looks_back)
    scorer, batch = Scorer(model), batch_of(trees(), "shared_prefix")
    wanted = scorer.score(batch).logps
    for _ in range(2):
        AdapterOff(scorer).score(batch, keep_start=True)
        torch.testing.assert_close(scorer.score(batch).logps, wanted)


def test_a_copy_that_started_as_another_model_shares_nothing():
    model = frozen_below(tiny_model("llama", num_hidden_layers=LAYERS), 2)
    other = tiny_model("llama", seed=5, num_hidden_layers=LAYERS)
    scorer, batch = Scorer(model), batch_of(trees(), "shared_prefix")
    wanted = scorer.score(batch).logps
    moving = MovingCopy(scorer, dict(other.named_parameters()))
    resumed = MovingCopy(scorer)
    resumed.restore(moving.weights())
    for reference in (moving, resumed):
        reference.score(batch, keep_start=True)
        torch.testing.assert_close(scorer.score(batch).logps, wanted)
