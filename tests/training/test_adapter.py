"""Adapters of a policy: new ones, those that transformers added, and what of them is trained."""

import copy
import math
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.reference import fingerprint_of
from prefopt.training.adapter import (
    add_adapter,
    added_by_transformers,
    as_peft_model,
    check_trained,
    is_peft,
)
from tests.models import move, tiny_model, tiny_rows
from tests.runs import config, steps, trainer

peft = pytest.importorskip("peft")

IDS = torch.arange(3, 12)[None]


def lora(**options):
    return peft.LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | options))


def native(*configs, names=("mine", "other"), **options):
    """Return a model to which transformers itself added adapters, the last of them active."""
    model = tiny_model("llama", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # as is meant
        for adapter, name in zip(configs or [lora(init_lora_weights=False)], names, strict=False):
            model.add_adapter(adapter, name)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# New ones -----------------------------------------------------------------------------------------


def test_an_adapter_is_added_once(tmp_path):
    model = add_adapter(tiny_model("llama"), lora(task_type="CAUSAL_LM"), config(tmp_path))
    assert is_peft(model)
    assert not is_peft(tiny_model("llama"))
    assert add_adapter(model, None, config(tmp_path)) is model
    with pytest.raises(TypeError, match=r"must be a peft.PeftConfig, got dict"):
        add_adapter(tiny_model("llama"), {}, config(tmp_path))


@pytest.mark.parametrize("make", [native, lambda: peft.get_peft_model(tiny_model("llama"), lora())])
def test_a_second_one_is_refused_with_the_choices(tmp_path, make):
    for attempt in (
        lambda: add_adapter(make(), lora(), config(tmp_path)),
        lambda: trainer(tmp_path, tiny_rows(4), model=make(), peft_config=lora()),
    ):
        with pytest.raises(ValueError, match=r"leave peft_config out .* or merge") as refused:
            attempt()
        assert "the model has an adapter already" in str(refused.value)


# Those that transformers added --------------------------------------------------------------------


KINDS = {
    "lora": lambda: lora(init_lora_weights=False),
    "zero": lora,
    "rslora": lambda: lora(use_rslora=True, init_lora_weights=False),
    "dora": lambda: lora(use_dora=True, init_lora_weights=False),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "all-linear": lambda: lora(target_modules="all-linear", init_lora_weights=False),
    "embeddings": lambda: lora(target_modules=["embed_tokens", "lm_head"]),
    "modules_to_save": lambda: lora(modules_to_save=["lm_head"]),
    "new tokens": lambda: lora(trainable_token_indices=[3, 4]),
    "bias": lambda: lora(bias="all"),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj"]),
    "layer norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # peft on layer norms
@pytest.mark.parametrize("kind", KINDS)
def test_they_go_on_as_they_are_in_a_peft_model(kind):
    model = move(native(KINDS[kind]()))
    wanted, trained = logits(model), {id(p) for p in model.parameters() if p.requires_grad}
    before = fingerprint_of(model)
    wrapped = as_peft_model(model)
    assert isinstance(wrapped, peft.PeftModel)
    torch.testing.assert_close(logits(wrapped), wanted, rtol=0, atol=0)
    assert {id(p) for p in wrapped.parameters() if p.requires_grad} == trained
    assert fingerprint_of(wrapped).digest == before.digest
    assert (list(wrapped.peft_config), added_by_transformers(wrapped)) == (["default"], [])


def test_the_start_of_an_adapter_stays_in_its_configuration():
    """PiSSA takes it from the base model again when what was saved is loaded."""
    wrapped = as_peft_model(native(lora(init_lora_weights="pissa")))
    assert wrapped.peft_config["default"].init_lora_weights == "pissa"


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    "options",
    [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [3, 4]}],
)
def test_they_go_on_where_embeddings_and_head_are_one(options):
    model = move(native(lora(**options), tie_word_embeddings=True))
    wanted, before = logits(model), fingerprint_of(model)
    wrapped = as_peft_model(model)
    torch.testing.assert_close(logits(wrapped), wanted, rtol=0, atol=0)
    assert fingerprint_of(wrapped).digest == before.digest


def test_several_keep_their_names_and_which_is_active():
    model = native(lora(init_lora_weights=False), lora(r=4, init_lora_weights=False))
    model.set_adapter("mine")
    wanted = logits(model)
    wrapped = as_peft_model(model)
    torch.testing.assert_close(logits(wrapped), wanted, rtol=0, atol=0)
    assert (list(wrapped.peft_config), wrapped.active_adapters) == (["mine", "other"], ["mine"])
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trained
    assert all(".mine." in name for name in trained)


def test_what_was_set_by_hand_stays():
    model = native()
    layer = model.model.layers[0].self_attn.q_proj
    layer.set_scale("mine", 3.0)
    model.model.norm.weight.requires_grad_(True)
    layer.lora_A["mine"].weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    wanted = logits(model)
    wrapped = as_peft_model(model)
    torch.testing.assert_close(logits(wrapped), wanted, rtol=0, atol=0)
    assert [parameter.requires_grad for parameter in wrapped.parameters()] == flags


def test_adapters_that_are_switched_off_stay_off():
    model = native()
    model.disable_adapters()
    wanted = logits(model)
    wrapped = as_peft_model(model)
    torch.testing.assert_close(logits(wrapped), wanted, rtol=0, atol=0)
    with pytest.raises(ValueError, match="nothing would be trained"):
        check_trained(wrapped)


def test_one_that_peft_cannot_build_anew_is_refused(monkeypatch):
    def fails(*args, **kwargs):
        raise KeyError("q_proj")

    model = native()
    monkeypatch.setattr(peft, "get_peft_model", fails)
    with pytest.raises(
        ValueError, match=r"\(mine\) cannot be taken over \(KeyError.*load the base"
    ):
        as_peft_model(model)


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize("start", [True, False])
def test_training_goes_on_from_them_against_the_policy_as_it_was(tmp_path, reference, start):
    model = native(lora(init_lora_weights=start))
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = trainer(tmp_path / "out", tiny_rows(8), model=model, reference=reference)
    trained.train()
    losses = [entry["loss"] for entry in steps(trained)]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < losses[0]
    now = dict(trained.model.get_base_model().named_parameters())
    for name, weight in base.items():
        torch.testing.assert_close(now[name], weight, rtol=0, atol=0)
    trained.save_model()
    again = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(trained.model))


def test_a_run_with_them_is_resumed(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(tmp_path / "whole", tiny_rows(16), model=native(), **options)
    whole.train()
    again = trainer(tmp_path / "again", tiny_rows(16), model=native(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    torch.testing.assert_close(logits(again.model), logits(whole.model), rtol=1e-5, atol=1e-6)


def test_as_a_reference_they_are_scored_as_they_are(tmp_path):
    rows, reference = tiny_rows(8), native()
    as_peft = peft.get_peft_model(tiny_model("llama"), lora(init_lora_weights=False))
    weights = {
        name.removeprefix("base_model.model.").replace(".default.", ".mine."): p
        for name, p in as_peft.named_parameters()
    }
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(weights[name])
    digests, first = [], []
    for ref_model in (reference, as_peft):
        made = trainer(tmp_path, rows, ref_model=ref_model, max_steps=1)
        digests.append(made.references.record()["fingerprint"])
        first.append(made.evaluate(rows)["eval_loss"])
    assert digests[0] == digests[1]
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    assert first[0] != pytest.approx(math.log(2), rel=1e-3)
    assert added_by_transformers(reference) == ["mine"]


# What is trained ----------------------------------------------------------------------------------


def sgd(parameters):
    return torch.optim.SGD(list(parameters), lr=0.1)


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"requires_grad_\(True\), or pass a peft_config"):
        check_trained(tiny_model("llama").requires_grad_(False))
    model = peft.get_peft_model(tiny_model("llama"), lora())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    with pytest.raises(ValueError, match=r"is_trainable=True\), or pass its folder as model"):
        trainer(tmp_path, tiny_rows(4), model=loaded)
    # To evaluate, nothing need be trained.
    made = trainer(tmp_path, None, model=loaded, eval_dataset=tiny_rows(4))
    assert made.evaluate()["eval_loss"] == pytest.approx(math.log(2), rel=1e-5)


def test_an_adapter_that_is_merged_is_refused():
    model = peft.get_peft_model(tiny_model("llama"), lora())
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"is merged .* model.unmerge_adapter\(\) to train it"):
        check_trained(model)
    model.unmerge_adapter()
    check_trained(model)


def test_an_adapter_that_is_not_active_does_not_count_as_trained():
    model = peft.get_peft_model(tiny_model("llama"), lora())
    model.add_adapter("other", lora())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".other." in name)
    with pytest.raises(ValueError, match=r"\(default\) is frozen.*model.set_adapter"):
        check_trained(model)
    model.set_adapter("other")
    check_trained(model)


def test_an_optimiser_of_other_parameters_is_refused(tmp_path):
    model = tiny_model("llama")
    check_trained(model, sgd(model.parameters()))
    with pytest.raises(ValueError, match=r"holds none of the 21 parameters that are trained"):
        check_trained(model, sgd(copy.deepcopy(model).parameters()))
    before = sgd(p for p in model.parameters())
    with pytest.raises(ValueError, match=r"holds none .* add its adapter, then make the optimiser"):
        trainer(tmp_path, tiny_rows(4), model=model, peft_config=lora(), optimizers=(before, None))


def test_an_optimiser_that_lacks_some_is_warned_of():
    model = tiny_model("llama")
    with pytest.warns(UserWarning, match=r"lacks 20 of the 21 parameters .* model.embed_tokens"):
        check_trained(model, sgd([model.lm_head.weight]))
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    check_trained(model, sgd([model.lm_head.weight]))


def test_an_optimiser_of_adapters_that_transformers_added_goes_on(tmp_path):
    model = native()
    optimiser = sgd(p for p in model.parameters() if p.requires_grad)
    trained = trainer(tmp_path, tiny_rows(8), model=model, optimizers=(optimiser, None))
    before = logits(trained.model)
    trained.train()
    assert not torch.equal(logits(trained.model), before)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_quantised_models_go_on(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    options = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(**options)
    )
    model.add_adapter(lora(init_lora_weights=False), "mine")
    before, wanted = fingerprint_of(model), logits(model)
    wrapped = as_peft_model(model)
    assert fingerprint_of(wrapped).digest == before.digest
    torch.testing.assert_close(logits(wrapped), wanted, rtol=0, atol=0)
    wrapped.save_pretrained(tmp_path / "adapter")
    quantised = BitsAndBytesConfig(**options)
    made = trainer(
        tmp_path, tiny_rows(4), model=str(tmp_path / "adapter"), quantization_config=quantised
    )
    torch.testing.assert_close(logits(made.model), wanted)


def test_a_model_loaded_by_transformers_from_an_adapter_is_frozen(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, lora(init_lora_weights=False)).save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="pass its folder as model"):
        trainer(tmp_path, tiny_rows(4), model=loaded)
    again = trainer(tmp_path / "out", tiny_rows(4), model=str(tmp_path / "adapter"), max_steps=1)
    torch.testing.assert_close(logits(again.model), logits(loaded))


@pytest.mark.parametrize(
    ("options", "told"),
    [({"learning_rate": 1e-6}, True), ({"learning_rate": 1e-5}, False), ({"whole": True}, False)],
)
def test_the_default_rate_of_whole_models_is_told_to_be_low_for_adapters(
    tmp_path, capsys, options, told
):
    given = dict(options)
    adapter = None if given.pop("whole", False) else lora()
    trainer(tmp_path, tiny_rows(4), peft_config=adapter, **{"learning_rate": 1e-6} | given)
    assert ("an adapter learns little at it" in capsys.readouterr().err) == told
