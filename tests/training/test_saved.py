"""The code that loads what was trained: executed as it is printed, for each kind of policy."""

import os
import re
import warnings

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from prefopt.engine.guard import keep_unpacked
from prefopt.training.model import loading_options
from prefopt.training.saved import loading_code
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import trainer

peft = pytest.importorskip("peft")

IDS = torch.arange(3, 14)[None]


def lora(**options):
    fields = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**(fields | options))


@pytest.fixture
def base(tmp_path):
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logps(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float().log_softmax(-1)


def code_after_training(tmp_path, **options):
    """Train, save, and return the trainer and the code that loads what was saved."""
    trained = trainer(tmp_path / "out", tiny_rows(8), **options)
    trained.train()
    trained.save_model()
    return trained, loading_code(
        trained.model, str(tmp_path / "out"), loading_options(trained.args)
    )


def executed(code):
    """Return the model that code loads in a namespace of its own."""
    namespace = {}
    exec(str(code), namespace)
    return namespace["model"]


def check(tmp_path, lines, atol=0.0, **options):
    trained, code = code_after_training(tmp_path, **options)
    assert len(code.lines) == lines, code
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(quantized|bitsandbytes|inference).*")
        loaded = executed(code)
    keep_unpacked(loaded.modules())  # some CPUs round 4-bit weights to use them, not to load them
    assert loaded.dtype == trained.model.dtype
    torch.testing.assert_close(logps(loaded), logps(trained.model), rtol=0, atol=atol)
    return code


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_model(tmp_path, base, dtype):
    options = {"model": str(base), "model_init_kwargs": {"dtype": dtype}}
    code = check(tmp_path, 1, learning_rate=0.1, **options)
    assert code.lines[0].startswith("model = AutoModelForCausalLM.from_pretrained(")


def test_a_whole_model_that_also_reads_images(tmp_path):
    model = tiny_model("llava")
    code = check(tmp_path, 1, model=model)
    assert code.imports == ("from transformers import AutoModelForImageTextToText",)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_a_base_in_the_dtype_that_it_was_trained_in(tmp_path, base, dtype):
    options = {"model_init_kwargs": {"dtype": dtype}}
    code = check(tmp_path, 2, model=str(base), peft_config=lora(), **options)
    assert f"dtype='{dtype}'" in code.lines[0]


def test_an_adapter_that_transformers_alone_would_load_otherwise(tmp_path, base):
    check(tmp_path, 2, model=str(base), peft_config=lora(use_dora=True))


def test_an_adapter_on_a_base_by_relative_path_is_found_from_elsewhere(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained, code = code_after_training(tmp_path, model="base", peft_config=lora())
    monkeypatch.chdir(os.sep)
    torch.testing.assert_close(logps(executed(code)), logps(trained.model), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logps(again), logps(trained.model), rtol=0, atol=0)


def test_an_adapter_that_was_trained_further(tmp_path, base):
    first = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), lora(init_lora_weights=False)
    )
    first.save_pretrained(tmp_path / "first")
    code = check(tmp_path, 2, model=str(tmp_path / "first"))
    assert (repr(str(base)) in code.lines[0], "first" in str(code)) == (True, False)


def test_an_adapter_of_another_name_is_loaded_from_its_subfolder(tmp_path, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, lora(), adapter_name="mine")
    code = check(tmp_path, 2, model=model)
    assert code.lines[1].endswith("out/mine')")


def test_several_active_adapters_are_all_loaded(tmp_path, base):
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(), "mine")
    model.add_adapter("other", lora(init_lora_weights=False))
    model.base_model.set_adapter(["mine", "other"])
    check(tmp_path, 4, model=model)


def test_an_adapter_on_a_model_with_more_tokens(tmp_path, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(101, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`")
        code = check(tmp_path, 3, model=model, peft_config=lora())
    assert code.lines[1] == "base.resize_token_embeddings(101)"


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft looks in the folder only
def test_an_adapter_on_a_model_of_a_subfolder(tmp_path, base):
    base.rename(tmp_path / "inner")
    (tmp_path / "outer").mkdir()
    (tmp_path / "inner").rename(tmp_path / "outer" / "inner")
    options = {"model_init_kwargs": {"subfolder": "inner"}, "processing_class": tiny_tokenizer()}
    check(tmp_path, 2, model=str(tmp_path / "outer"), peft_config=lora(), **options)


@pytest.mark.parametrize("saved_quantised", [False, True])
def test_an_adapter_on_a_quantised_base(tmp_path, base, saved_quantised):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    options = {"model": str(base), "quantization_config": how}
    if saved_quantised:
        AutoModelForCausalLM.from_pretrained(base, quantization_config=how).save_pretrained(
            tmp_path / "small"
        )
        options = {"model": str(tmp_path / "small"), "processing_class": tiny_tokenizer()}
    code = check(tmp_path, 2, atol=1e-5, peft_config=lora(), **options)
    assert ("BitsAndBytesConfig" in str(code)) != saved_quantised


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BitsAndBytesConfig", {"load_in_8bit": True}),
        ("BitsAndBytesConfig", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
        ("QuantoConfig", {"weights": "int8"}),
        ("HqqConfig", {"nbits": 4, "group_size": 32}),
        ("TorchAoConfig", {}),
    ],
)
def test_each_quantisation_is_written_as_plain_values(base, name, options):
    if name == "TorchAoConfig":
        options = {"quant_type": pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()}
    how = getattr(transformers, name)(**options)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    model.get_base_model().config.quantization_config = how
    code = loading_code(model, "out", {})
    namespace = {name: getattr(transformers, name)}
    exec(
        "made = " + code.lines[0].partition("quantization_config=")[2].removesuffix(")"), namespace
    )
    made = namespace["made"]
    assert made.to_dict() == how.to_dict()
    assert f"import AutoModelForCausalLM, {name}" in code.imports[0]


def test_an_adapter_on_a_model_from_nowhere_says_what_is_needed(tmp_path):
    _, code = code_after_training(tmp_path, model=tiny_model("llama"), peft_config=lora())
    assert re.match(r"base = \.\.\.  # the LlamaForCausalLM that was given", code.lines[0])


def test_secrets_are_not_printed(tmp_path, base):
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    options = {"token": "hf_secret", "local_files_only": True, "trust_remote_code": False}
    code = str(loading_code(model, "out", options))
    assert ("hf_secret" in code, "local_files_only=True" in code) == (False, True)
    assert "trust_remote_code" not in code


def test_code_is_given_where_the_base_is_gone(tmp_path, base):
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    base.rename(tmp_path / "elsewhere")
    assert repr(str(base)) in loading_code(model, "out", {}).lines[0]
