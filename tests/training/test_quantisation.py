"""Quantised models: how they are asked for, what is said where they cannot be had or trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig

from prefopt.training.model import load_policy, load_reference
from prefopt.training.quantisation import (
    check_placed,
    check_quantised,
    quantiser_explained,
    quantization_of,
    with_quantization,
)
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.quantisers import save_base
from tests.runs import config, trainer

# Packages that quantise warn of each other, and of what they will rename.
pytestmark = pytest.mark.filterwarnings("ignore")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}


def test_mappings_are_read_as_json_and_yaml_have_them():
    pytest.importorskip("bitsandbytes")
    found = quantization_of(NF4)
    assert (found.load_in_4bit, found.bnb_4bit_compute_dtype) == (True, torch.bfloat16)
    assert quantization_of(found) is found
    assert quantization_of({"load_in_8bit": True}).load_in_8bit
    assert quantization_of(found.to_dict()).to_dict() == found.to_dict()
    given = quantization_of({"quant_method": "quanto", "weights": "int4"})
    assert (type(given), given.weights) == (QuantoConfig, "int4")


def test_a_type_of_torchao_is_named_with_its_fields():
    kinds = pytest.importorskip("torchao.quantization")
    for name in ("int8_weight_only", "Int8WeightOnlyConfig"):
        found = quantization_of({"quant_method": "torchao", "quant_type": name})
        assert type(found.quant_type) is kinds.Int8WeightOnlyConfig
        assert quantization_of(found.to_dict()).quant_type == found.quant_type
    fields = {"quant_type": "int4_weight_only", "group_size": 32, "modules_to_not_convert": ["k"]}
    found = quantization_of({"quant_method": "torchao"} | fields)
    assert (found.quant_type.group_size, found.modules_to_not_convert) == (32, ["k"])
    for fields, said in (
        ({"quant_type": "int9_weight_only"}, "no quant_type 'int9_weight_only'; it has .*Int8"),
        ({"quant_type": "int8_weight_only", "group": 3}, "torchao: .* argument 'group'"),
        ({"quant_type": {"other": 1}}, "cannot be read: AssertionError"),
    ):
        with pytest.raises(ValueError, match=said):
            quantization_of({"quant_method": "torchao"} | fields)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "must say how to quantise: load_in_4bit or load_in_8bit"),
        ({"quant_method": "int3"}, "a quant_method of .*quanto"),
        ({"load_in_4bit": False}, "must say how to quantise"),
        ({"quant_method": "quanto", "weight": "int4"}, "no field 'weight'; a QuantoConfig has .*"),
        (NF4 | {"bnb_4bit_quant_typ": "fp4"}, "no field 'bnb_4bit_quant_typ'; a BitsAndBytes"),
    ],
)
def test_mappings_that_say_nothing_or_something_unknown_are_errors(given, said):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match=said):
        quantization_of(given)


def test_something_else_is_no_quantisation():
    with pytest.raises(TypeError, match=r"or a mapping of its fields, got 'nf4'"):
        quantization_of("nf4")


def test_it_is_asked_for_once_and_the_arguments_stay_as_they_are(tmp_path):
    args = config(tmp_path, model_init_kwargs={"dtype": "float32"})
    changed = with_quantization(args, NF4)
    assert changed.model_init_kwargs == {"dtype": "float32", "quantization_config": NF4}
    assert args.model_init_kwargs == {"dtype": "float32"}
    with pytest.raises(ValueError, match="quantization_config is given twice: to the trainer"):
        with_quantization(changed, NF4)
    with pytest.raises(ValueError, match="quantization_config only matters when the model is"):
        trainer(tmp_path, tiny_rows(4), quantization_config=NF4)


def test_policies_and_references_by_name_are_quantised(tmp_path):
    pytest.importorskip("bitsandbytes")
    args = config(tmp_path, model_init_kwargs={"quantization_config": NF4})
    folder = save_base(tmp_path / "base")
    for model in (load_policy(folder, args), load_reference(folder, tiny_tokenizer(), args)):
        assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


# What cannot be loaded ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ModuleNotFoundError("No module named 'optimum.gptq'"), ImportError, "pip install optimum"),
        (ImportError("needs x: `pip install x`"), ImportError, "quantised by gptq: needs x: .*x`$"),
        (RuntimeError("No GPU  was\nfound"), ValueError, "by gptq: No GPU was found$"),
        (NotImplementedError("soon"), ValueError, "can't load the model m quantised by gptq: soon"),
        (AssertionError("Only 2D"), ValueError, "by gptq: Only 2D"),
        (ValueError("pre_quantized=False"), ValueError, "gptq cannot quantise while it loads"),
    ],
)
def test_errors_of_quantisers_are_one_sentence(error, kind, said):
    options = {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(kind, match=said), quantiser_explained("m", options):
        raise error


def test_other_errors_stay_what_they_are(tmp_path):
    quantised = {"quantization_config": BitsAndBytesConfig}
    for error, options in (
        (torch.OutOfMemoryError("out of memory"), quantised),
        (FileNotFoundError("no such file"), quantised),
        (RuntimeError("something"), {}),
    ):
        with pytest.raises(type(error)) as raised, quantiser_explained(str(tmp_path), options):
            raise error
        assert raised.value is error


def test_a_cause_that_stands_in_a_report_alone_is_told(tmp_path):
    """transformers logs what a quantiser said of each weight, and raises "see the report"."""
    kinds = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    how = TorchAoConfig(kinds.Float8DynamicActivationFloat8WeightConfig())
    if torch.cuda.is_available():
        pytest.skip("it can be had on a GPU")
    args = config(tmp_path, model_init_kwargs={"quantization_config": how})
    said = (
        r"^can't load the model .* quantised by torchao: Float8 dynamic quantization requires CUDA"
    )
    with pytest.raises(ValueError, match=said):
        load_policy(save_base(tmp_path / "base"), args)


def test_a_checkpoint_of_other_bits_than_were_asked_for_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder, four = save_base(tmp_path / "base"), quantization_of(NF4)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=four).save_pretrained(
        tmp_path / "four"
    )
    args = config(tmp_path, model_init_kwargs={"quantization_config": NF4})
    assert load_policy(str(tmp_path / "four"), args).is_loaded_in_4bit
    args = config(tmp_path, model_init_kwargs={"quantization_config": {"load_in_8bit": True}})
    with pytest.raises(ValueError, match="load_in_4bit=False was asked for, but"):
        load_policy(str(tmp_path / "four"), args)


@pytest.mark.parametrize("kind", ["awq", "aqlm", "spqr", "vptq"])
def test_kinds_that_only_read_their_own_checkpoints_say_so(tmp_path, kind):
    args = config(tmp_path, model_init_kwargs={"quantization_config": {"quant_method": kind}})
    with pytest.raises((ValueError, ImportError), match=rf"^can't load .* quantised by {kind}: "):
        load_policy(save_base(tmp_path / "base"), args)


# What cannot be trained ---------------------------------------------------------------------------


def test_models_that_are_not_quantised_are_trained_as_they_are():
    check_quantised(tiny_model("llama"))
    check_placed(tiny_model("llama"))


@pytest.fixture
def places():
    names = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    return dict.fromkeys(names, "cpu") | {"model.layers.1": "disk"}


def test_layers_offloaded_to_disk_are_refused(tmp_path, places):
    folder = save_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "away"
    )
    said = r"layers of the model are offloaded to .*disk, the first is model\.layers\.1"
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path / "out", tiny_rows(4), model=model)
    kwargs = {"device_map": places, "offload_folder": str(tmp_path / "more")}
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path / "out", tiny_rows(4), model=folder, model_init_kwargs=kwargs)


def test_an_offloaded_model_may_be_evaluated_and_be_the_reference(tmp_path, places):
    folder = save_base(tmp_path / "base")
    options = {"device_map": places, "offload_folder": tmp_path / "away"}
    for reference in (AutoModelForCausalLM.from_pretrained(folder, **options), folder):
        run = trainer(
            tmp_path / "out",
            tiny_rows(4),
            model=folder,
            ref_model=reference,
            eval_dataset=tiny_rows(3, seed=2),
        )
        assert run.evaluate()["eval_loss"] == pytest.approx(0.693147, abs=1e-5)


def test_weights_without_numbers_are_refused():
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"2 weights .* hold no numbers .*, the first is 0.weight"):
        check_placed(model)
