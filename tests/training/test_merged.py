"""A merged adapter is a plain model that predicts the same, or there is none."""

import stat

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.engine.guard import keep_unpacked
from prefopt.training import merged
from prefopt.training.loading import load_model
from prefopt.training.merged import merge_to_folder
from tests.models import tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")

IDS = torch.arange(3, 20)[None]


@pytest.fixture
def base(tmp_path):
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def save_adapter(base, folder, config=None, **options):
    fields = {"r": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | options
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, config or peft.LoraConfig(**fields)).save_pretrained(folder)
    return str(folder)


def tokenizer():
    made = tiny_tokenizer()
    made.chat_template = "{{ messages[0].content }}"
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_predicts_what_the_adapter_does(base, tmp_path, dtype):
    adapter = save_adapter(base, tmp_path / "adapter")
    out = tmp_path / "merged" / "model"
    report = merge_to_folder(adapter, out, tokenizer(), {"dtype": dtype})
    assert (report.base, report.dtype) == (str(base), dtype)
    assert report.difference <= report.tolerance == {"float32": 1e-3, "bfloat16": 0.5}[dtype]
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="float32")
    adapted = load_model(adapter, {"dtype": "float32"})
    with torch.no_grad():
        found, expected = (
            model(input_ids=IDS).logits.log_softmax(-1) for model in (loaded, adapted)
        )
        plain = AutoModelForCausalLM.from_pretrained(base)(input_ids=IDS).logits.log_softmax(-1)
    atol = {"float32": 1e-4, "bfloat16": 0.1}[dtype]
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    assert (plain - expected).abs().max() > 0.5  # the adapter does something
    assert not (out / "adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer().chat_template
    assert stat.S_IMODE(out.stat().st_mode) & 0o555 == 0o555 & ~merged._umask()
    assert [path.name for path in out.parent.iterdir()] == ["model"]


@pytest.mark.filterwarnings("ignore")  # of packages that quantise
def test_a_quantised_base_becomes_plain(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    from prefopt.training.quantisation import quantization_of

    adapter = save_adapter(base, tmp_path / "adapter")
    quantised = quantization_of({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    options = {"dtype": "float32", "quantization_config": quantised}
    report = merge_to_folder(adapter, tmp_path / "merged", tokenizer(), options)
    assert report.difference < 1e-3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    adapted = load_model(adapter, options)
    keep_unpacked(adapted.modules())
    with torch.no_grad():
        found, expected = (model(input_ids=IDS).logits for model in (loaded, adapted))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_model_that_predicts_something_else_is_not_kept(base, tmp_path, monkeypatch):
    adapter = save_adapter(base, tmp_path / "adapter")

    def forgetful(model):
        return model.unload()  # the adapter is gone

    monkeypatch.setattr(merged, "merge", forgetful)
    with pytest.raises(
        ValueError, match=r"cannot be merged: .* differ by up to .* nats, more than"
    ):
        merge_to_folder(adapter, tmp_path / "merged", tokenizer(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_cannot_be_merged_is_said_in_a_sentence(base, tmp_path, monkeypatch):
    adapter = save_adapter(base, tmp_path / "adapter")

    def impossible(model):
        raise NotImplementedError

    monkeypatch.setattr(merged, "merge", impossible)
    with pytest.raises(ValueError, match=r"\(LoraConfig\) cannot be merged: NotImplementedError"):
        merge_to_folder(adapter, tmp_path / "merged", tokenizer(), {})
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompts = save_adapter(base, tmp_path / "prompts", config)
    with pytest.raises(ValueError, match="puts virtual tokens before the text"):
        merge_to_folder(prompts, tmp_path / "merged", tokenizer(), {})
    assert not (tmp_path / "merged").exists()


def test_folders_are_not_written_over(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds something already"):
        merge_to_folder(adapter, base, tokenizer(), {})
    (tmp_path / "empty").mkdir()
    merge_to_folder(adapter, tmp_path / "empty", tokenizer(), {})
    assert (tmp_path / "empty" / "config.json").is_file()
    with pytest.raises(ValueError, match="is no adapter: there is nothing to merge"):
        merge_to_folder(str(base), tmp_path / "new", tokenizer(), {})
