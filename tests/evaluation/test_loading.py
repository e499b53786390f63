"""Models to ask: loaded as they are, adapters on their base, with a tokenizer in any case."""

import pytest
import torch

from prefopt.evaluation.generation import generate
from prefopt.evaluation.loading import inference_options, load_for_inference
from tests.models import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_ready_to_be_asked(folder):
    model, tokenizer = load_for_inference(str(folder))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    options = {"temperature": 0, "max_new_tokens": 4}
    expected = generate(tiny_model("llama"), tiny_tokenizer(), ["w5"], **options)
    assert generate(model, tokenizer, ["w5"], **options) == expected


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(folder, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny_model("llama")
    base.name_or_path = base.config._name_or_path = str(folder)
    config = peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    model, tokenizer = load_for_inference(str(tmp_path / "adapter"))
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(model(input_ids=ids).logits, adapted(input_ids=ids).logits)


def test_what_is_missing_is_said(tmp_path, folder):
    with pytest.raises(OSError, match="no such folder"):
        load_for_inference(str(tmp_path / "nothing"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="can't load the tokenizer"):
        load_for_inference(str(folder))


def test_what_is_given_goes_before_what_is_usual(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr("prefopt.evaluation.loading.best_device", lambda: cpu)
    assert inference_options() == {"dtype": torch.float32}
    assert inference_options({"dtype": "bfloat16"}) == {"dtype": "bfloat16"}
    monkeypatch.setattr("prefopt.evaluation.loading.best_device", lambda: gpu)
    assert inference_options() == {"dtype": "auto", "device_map": {"": gpu}}
