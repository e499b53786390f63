"""What a reference is and how it is had again: never another one, and never at a policy's cost."""

import gc
import weakref

import numpy as np
import pytest
import torch

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.reference import AdapterError, fingerprint_of
from prefopt.reference.adapters import trains_only_adapters
from prefopt.reference.sources import (
    InitialPolicy,
    MovingPolicy,
    NamedAdapter,
    OtherModel,
    ResumedReference,
)
from prefopt.reference.store.logp_store import open_database
from tests.models import move, tiny_model

peft = pytest.importorskip("peft")

# Peft saves a head that an adapter wraps whole, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


@pytest.fixture
def batch():
    tokens = np.arange(3, 20)
    return build_layout([Example(tokens[:5], [tokens[5:9], tokens[9:]])])


def lora(model=None, name="default", **options):
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    base = tiny_model("llama") if model is None else model
    return peft.get_peft_model(base, peft.LoraConfig(**fields), adapter_name=name)


def logps(model, batch):
    return Scorer(model).score(batch).per_token_logps.detach()


# A saved adapter ----------------------------------------------------------------------------------

# The head and modules that are trained whole are the hard ones.
WIDE = {"target_modules": ["q_proj", "v_proj", "lm_head"], "modules_to_save": ["norm"]}


@pytest.fixture
def saved(tmp_path):
    """An adapter in a folder, and the model that it was saved from."""
    model = move(lora(r=3, **WIDE), seed=7)
    model.save_pretrained(tmp_path / "sft")
    return str(tmp_path / "sft"), model


def named(saved, policy):
    return NamedAdapter(saved[0], Scorer(policy), "none", None, Scorer)


@pytest.mark.parametrize("policy", ["plain", "fresh", "trained"])
def test_a_saved_adapter_scores_as_the_model_it_was_saved_from(saved, batch, policy):
    model = tiny_model("llama") if policy == "plain" else lora()
    if policy == "trained":
        move(model)
    wanted = logps(saved[1], batch)
    own = logps(model, batch)
    source = named(saved, model)
    for reference in (source.load(), source.live()):
        got = reference.score(batch).per_token_logps
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert (own - wanted).abs().max() > 1e-3
    torch.testing.assert_close(logps(model, batch), own, rtol=0, atol=0)


def test_its_fingerprint_is_that_of_base_and_adapter_under_any_name(saved, tmp_path):
    mine = named(saved, move(lora())).fingerprint()
    assert mine.digest == fingerprint_of(saved[1]).digest
    assert mine.digest == named(saved, tiny_model("llama")).fingerprint().digest
    other_name = peft.PeftModel.from_pretrained(tiny_model("llama"), saved[0], adapter_name="x")
    assert mine.digest == fingerprint_of(other_name).digest
    other_base = NamedAdapter(
        saved[0], Scorer(tiny_model("llama", seed=3)), "none", None, Scorer
    ).fingerprint()
    assert mine.digest != other_base.digest


def state_of(model):
    return (
        model.active_adapters,
        [(name, p.requires_grad, id(p), p.data_ptr()) for name, p in model.named_parameters()],
        [(name, id(module), module.training) for name, module in model.named_modules()],
        sorted(model.peft_config),
    )


def test_the_policy_stays_exactly_as_it_is(saved, batch):
    model = lora(modules_to_save=["norm"])
    model.add_adapter("second", peft.LoraConfig(r=1, target_modules=["k_proj"]))
    model.set_adapter("second")
    model.train()
    model.base_model.model.model.layers[0].eval()
    scorer = Scorer(model)
    before = state_of(model)
    source = NamedAdapter(saved[0], scorer, "none", None, Scorer)
    source.load().score(batch)
    source.live().score(batch)
    assert state_of(model) == before


def test_a_live_adapter_stays_where_the_base_began_though_that_is_trained(saved, batch):
    policy = tiny_model("llama")
    wanted = logps(saved[1], batch)
    source = named(saved, policy)
    live = source.live()
    move(policy)
    torch.testing.assert_close(live.score(batch).per_token_logps, wanted, rtol=1e-5, atol=1e-5)
    source.moved = True
    with pytest.raises(ValueError, match=r"it is gone: the adapter .* is not what it was"):
        source.load()
    again = NamedAdapter(
        saved[0], Scorer(tiny_model("llama")), "none", lambda: tiny_model("llama"), Scorer
    )
    move(again._policy)
    got = again.load().score(batch).per_token_logps
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_on_a_4_bit_base_copies_no_weights(batch, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = tiny_model("llama", hidden_size=64)  # whole blocks of 64 weights
    model.save_pretrained(tmp_path / "base")
    saved = str(tmp_path / "sft"), move(lora(model, r=3))
    saved[1].save_pretrained(saved[0])
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)

    def load():
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=four_bits, dtype=torch.float32
        )

    wanted = logps(peft.PeftModel.from_pretrained(load(), saved[0]), batch)
    policy = lora(load())
    reference = named(saved, policy).load()
    torch.testing.assert_close(reference.score(batch).per_token_logps, wanted)
    mine = dict(policy.get_base_model().model.layers[0].mlp.named_modules())["up_proj"]
    shared = reference.scorer.model.get_base_model().model.layers[0].mlp.up_proj
    assert shared is not mine
    assert shared.weight.data_ptr() == mine.weight.data_ptr()
    assert shared.weight.quant_state is mine.weight.quant_state


def test_nothing_of_it_stays_in_memory(saved, batch):
    source = named(saved, lora())
    reference = source.load()
    reference.score(batch)
    model = weakref.ref(reference.scorer.model)
    del reference
    source.release()
    gc.collect()
    assert model() is None


def test_an_adapter_that_is_not_there_or_does_not_fit_is_an_error(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
        NamedAdapter(str(tmp_path / "empty"), Scorer(lora()), "none", None, Scorer)
    with pytest.raises(AdapterError, match="no adapter at nobody/nothing"):
        NamedAdapter("nobody/nothing", Scorer(lora()), "none", None, Scorer)
    with pytest.raises(AdapterError, match=r"does not fit the model.*size mismatch"):
        named(saved, tiny_model("llama", hidden_size=16))
    with pytest.raises(AdapterError, match=r"does not fit the model.*of its weights have no place"):
        named(saved, tiny_model("llama", num_hidden_layers=1))
    with pytest.raises(AdapterError, match="does not fit the model"):
        named(saved, tiny_model("gpt_neox"))


# A model beside the policy ------------------------------------------------------------------------


class Loading:
    """Loads models by name, or takes them, and counts."""

    def __init__(self, seed=0):
        self.count, self.seed = 0, seed

    def __call__(self, model):
        self.count += 1
        return tiny_model("llama", seed=self.seed) if isinstance(model, str) else model


def other(model, load, database=None):
    return OtherModel(model, load, {}, "none", Scorer, database)


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_model_by_name_is_loaded_once_to_be_recognised(folder, tmp_path):
    database = open_database(tmp_path)
    first, second = Loading(), Loading()
    known = other(folder, first, database).fingerprint()
    assert other(folder, second, database).fingerprint() == known
    assert (first.count, second.count) == (1, 0)
    tiny_model("llama", seed=1).save_pretrained(folder)
    changed = Loading(seed=1)
    assert other(folder, changed, database).fingerprint().digest != known.digest
    assert changed.count == 1


def test_a_model_that_changed_since_it_was_recognised_scores_nothing(folder):
    load = Loading()
    source = other(folder, load)
    source.fingerprint()
    source.release()
    load.seed = 1
    with pytest.raises(ValueError, match="is not what it was when the trainer was made"):
        source.load()


def test_a_given_model_is_let_go_and_taken_again_while_its_owner_keeps_it(batch):
    model = tiny_model("llama", seed=4)
    source = other(model, Loading())
    source.fingerprint()
    source.load().score(batch)
    source.release()
    source.load()
    source.release()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(ValueError, match="ref_model was dropped after it had scored"):
        source.load()


def test_a_given_model_that_is_gone_is_loaded_from_where_it_came(folder, batch):
    model = tiny_model("llama")
    model.config._name_or_path = folder
    load = Loading()
    source = other(model, load)
    source.fingerprint()
    source.release()
    del model
    gc.collect()
    got = source.load().score(batch).per_token_logps
    torch.testing.assert_close(got, logps(tiny_model("llama"), batch))
    assert load.count == 2


# The policy as it was -----------------------------------------------------------------------------


def test_what_is_trained_beside_the_adapter_is_seen():
    assert trains_only_adapters(lora())
    assert trains_only_adapters(lora(modules_to_save=["norm"], use_dora=True))
    assert trains_only_adapters(lora(name="model"))  # called like a part of the model
    assert not trains_only_adapters(lora(tiny_model("qwen2"), bias="all"))
    unfrozen = lora()
    unfrozen.base_model.model.model.norm.weight.requires_grad_(True)
    assert not trains_only_adapters(unfrozen)


def test_a_policy_that_moved_is_not_kept_as_the_reference(batch):
    policy = tiny_model("llama")
    source = InitialPolicy(Scorer(policy), "none", lambda: tiny_model("llama"), Scorer)
    wanted = logps(policy, batch)
    source.moved = True
    torch.testing.assert_close(source.live().score(batch).per_token_logps, wanted)
    move(policy)
    torch.testing.assert_close(source.live().score(batch).per_token_logps, wanted)
    assert (logps(policy, batch) - wanted).abs().max() > 1e-3
    lost = InitialPolicy(Scorer(policy), "none", None, Scorer)
    lost.moved = True
    move(policy)
    with pytest.raises(ValueError, match="which has been trained since"):
        lost.live()


def test_a_zero_initialised_adapter_has_the_fingerprint_of_its_base():
    source = InitialPolicy(Scorer(lora()), "none", None, Scorer, adapter_off=True)
    assert source.fingerprint().digest == fingerprint_of(tiny_model("llama")).digest


def test_what_moves_has_no_fingerprint():
    assert MovingPolicy(Scorer(tiny_model("llama"))).fingerprint() is None


# The reference of an earlier run ------------------------------------------------------------------


def test_a_recorded_reference_is_the_first_candidate_that_has_its_fingerprint(folder, batch):
    fingerprint = fingerprint_of(tiny_model("llama"))
    wrong, right = Loading(seed=1), Loading()

    def missing():
        raise OSError("no such folder")

    source = ResumedReference(
        fingerprint,
        "the policy",
        {"name_or_path": folder},
        [missing, lambda: other("wrong", wrong), lambda: other(folder, right)],
    )
    assert source.fingerprint() is fingerprint
    assert (wrong.count, right.count) == (0, 0)
    got = source.load().score(batch).per_token_logps
    torch.testing.assert_close(got, logps(tiny_model("llama"), batch))
    assert (wrong.count, right.count) == (1, 1)


def test_a_recorded_reference_that_is_nowhere_says_what_is_needed(folder):
    fingerprint = fingerprint_of(tiny_model("llama", seed=9))
    source = ResumedReference(
        fingerprint,
        "the initial policy",
        {"name_or_path": folder},
        [lambda: other(folder, Loading())],
    )
    message = rf"\[{fingerprint.digest[:12]}\].* not in the store; .*model is another model now"
    with pytest.raises(ValueError, match=message):
        source.load()
