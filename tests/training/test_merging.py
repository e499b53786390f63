"""A merged policy predicts what it predicted with its adapter, quantised or not, loaded too."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.engine.quantised import is_quantised
from prefopt.training.merging import merge
from tests.models import tiny_model
from tests.quantisers import kinds, load, save_base

peft = pytest.importorskip("peft")

# Packages that quantise warn of each other, and of what they will rename.
pytestmark = pytest.mark.filterwarnings("ignore")


def logps(model):
    """Return log-probs of a text in the mode of training, in which 8-bit layers are exact."""
    with torch.no_grad():
        return model.train()(input_ids=torch.arange(3, 14)[None]).logits.float().log_softmax(-1)


def with_lora(model, **options):
    fields = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    config = peft.LoraConfig(**(fields | {"init_lora_weights": False} | options))
    torch.manual_seed(0)
    return peft.get_peft_model(model, config)


def check(tmp_path, model, atol=1e-4):
    before = logps(model)
    merged = merge(model)
    assert not any(is_quantised(weight) for weight in merged.parameters())
    torch.testing.assert_close(logps(merged), before, rtol=0, atol=atol)
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=merged.dtype)
    torch.testing.assert_close(logps(loaded), before, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", kinds("hqq"))
def test_on_a_quantised_base(tmp_path, kind):
    check(tmp_path, with_lora(load(save_base(tmp_path / "base"), kind)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_on_a_plain_base(tmp_path, tied, options):
    if tied and "modules_to_save" in options:
        pytest.skip("a copy of a tied head is no longer tied")
    check(tmp_path, with_lora(tiny_model("llama", tie_word_embeddings=tied), **options))


def test_biases_are_kept(tmp_path):
    check(tmp_path, with_lora(tiny_model("qwen2"), bias="all"))


def test_an_adapter_on_the_embeddings(tmp_path):
    check(tmp_path, with_lora(tiny_model("llama"), target_modules=["embed_tokens", "q_proj"]))


def test_a_quantised_model_without_an_adapter_becomes_plain(tmp_path):
    pytest.importorskip("bitsandbytes")
    check(tmp_path, load(save_base(tmp_path / "base"), "nf4"))
