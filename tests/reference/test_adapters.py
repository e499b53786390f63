"""A model without its adapters, or with a saved one, around the same weights."""

import sys

import pytest
import torch
from torch import nn

from prefopt.reference.adapters import (
    AdapterError,
    active_adapters,
    copy_without_adapters,
    is_sharded,
    trains_only_adapters,
    with_adapter,
)
from tests.models import tiny_model

peft = pytest.importorskip("peft")


def lora(**options):
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    return peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**fields))


def test_weights_that_are_not_in_this_process_make_a_model_sharded():
    model = nn.Linear(2, 2)
    assert not is_sharded(model)
    assert is_sharded(nn.Linear(2, 2, device="meta"))
    model.weight.ds_id = 0  # as DeepSpeed marks them, which can be gathered
    assert not is_sharded(model)
    model.weight.device_mesh = None  # as a DTensor has one
    assert is_sharded(model)


def test_a_model_that_is_trained_whole_does_not_train_only_adapters():
    assert trains_only_adapters(lora())
    model = lora()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    assert not trains_only_adapters(model)


def test_a_copy_without_adapters_has_the_weights_and_names_of_the_base():
    model = lora(modules_to_save=["norm"])
    before = sorted(name for name, _ in model.named_parameters())
    bare = copy_without_adapters(model)
    base = tiny_model("llama")
    weights, wanted = dict(bare.named_parameters()), dict(base.named_parameters())
    assert sorted(weights) == sorted(wanted)
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    own = bare.model.layers[0].self_attn.q_proj
    assert own.weight.data_ptr() == layer.weight.data_ptr()
    assert sorted(name for name, _ in model.named_parameters()) == before


def test_a_copy_has_no_trained_tokens_and_no_adapters_that_transformers_added():
    model = lora(trainable_token_indices=[3, 4])
    assert set(copy_without_adapters(model).state_dict()) == set(tiny_model("llama").state_dict())
    model = tiny_model("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), "mine")
    bare = copy_without_adapters(model)
    assert set(bare.state_dict()) == set(tiny_model("llama").state_dict())
    assert not bare._hf_peft_config_loaded
    assert active_adapters(model) == ["mine"]


def test_only_what_is_trained_is_copied_if_that_is_asked_for():
    model = tiny_model("llama").requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    bare = copy_without_adapters(model, copy_trained=True)
    assert bare.model.norm.weight.data_ptr() != model.model.norm.weight.data_ptr()
    assert bare.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    torch.testing.assert_close(bare.model.norm.weight, model.model.norm.weight - 1)


def test_a_saved_adapter_is_attached_frozen(tmp_path):
    trained = lora()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    trained.save_pretrained(tmp_path)
    model = with_adapter(tiny_model("llama"), str(tmp_path))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, trained(input_ids=ids).logits)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(AdapterError, match=r"no adapter in .*: it has no adapter_config\.json"):
        with_adapter(tiny_model("llama"), str(tmp_path))


def test_an_adapter_of_another_model_is_told_with_the_first_weight_that_has_no_place(tmp_path):
    lora().save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"does not fit the model: \d+ of its weights"):
        with_adapter(tiny_model("llama", num_hidden_layers=1), str(tmp_path))


def test_without_peft_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'prefopt\[peft\]'"):
        with_adapter(tiny_model("llama"), str(tmp_path))
