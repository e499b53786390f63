"""Models by name: what they are, in which dtype, whether all their weights are there."""

import json
import math
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from prefopt import PreferenceTrainer
from prefopt.reference import fingerprint_of
from prefopt.reference.adapters import AdapterError
from prefopt.training.loading import SavedAdapter, check_causal, dtype_of, load_model
from prefopt.training.model import load_reference
from tests.models import (
    MULTIMODAL,
    PADDED_ONLY,
    SHARING,
    tiny_config,
    tiny_model,
    tiny_rows,
    tiny_tokenizer,
)
from tests.runs import config, steps, trainer

peft = pytest.importorskip("peft")

IDS = torch.arange(3, 12)[None]


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(folder):
    """Return the folder of an adapter that was trained."""
    return saved_adapter(folder, init_lora_weights=False)


def saved_adapter(folder, *, base=None, **options):
    model = AutoModelForCausalLM.from_pretrained(folder)
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(model, peft.LoraConfig(**fields))
    place = folder.parent / "adapter"
    model.save_pretrained(place)
    if base is not None:
        edit(place / "adapter_config.json", base_model_name_or_path=base)
    return place


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# Data types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_the_dtype_that_is_asked_for_is_that_of_the_model(folder, name, value):
    assert load_model(str(folder), {name: value}).dtype == torch.bfloat16


def test_without_one_it_is_float32_and_auto_is_that_of_the_checkpoint(tmp_path):
    tiny_model("llama").to(torch.float16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), {}).dtype == torch.float32
    assert load_model(str(tmp_path), {"dtype": None}).dtype == torch.float32
    assert load_model(str(tmp_path), {"torch_dtype": "auto"}).dtype == torch.float16


def test_both_names_may_say_the_same_but_not_two_things():
    assert dtype_of({"dtype": "float16", "torch_dtype": torch.float16}) == torch.float16
    with pytest.raises(ValueError, match=r"dtype='bfloat16' and torch_dtype='auto'.* leave one"):
        dtype_of({"dtype": "bfloat16", "torch_dtype": "auto"})


@pytest.mark.parametrize("value", ["bf17", "int8", torch.int8, "nn", 16, "float8_e4m3fn", ""])
def test_what_is_no_dtype_to_train_in_is_told_with_those_that_are(value):
    with pytest.raises(ValueError, match=r"torch_dtype in model_init_kwargs must be one of float3"):
        dtype_of({"torch_dtype": value})


# Kinds of models ----------------------------------------------------------------------------------

BART = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 2,
}
T5 = {"vocab_size": 97, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4}


def config_of(name):
    fields = T5 if "T5" in name or name == "SwitchTransformers" else BART
    if name == "Blip2":
        return transformers.Blip2Config(text_config={"model_type": "t5"} | T5)
    if name == "EncoderDecoder":
        half = transformers.BertConfig(vocab_size=97, hidden_size=32, num_attention_heads=4)
        return transformers.EncoderDecoderConfig.from_encoder_decoder_configs(half, half)
    return getattr(transformers, f"{name}Config")(**fields)


@pytest.mark.parametrize(
    "name",
    ["T5", "MT5", "UMT5", "LongT5", "SwitchTransformers", "Bart", "MBart", "Pegasus", "Marian",
     "Blenderbot", "LED", "M2M100", "Whisper", "Blip2", "EncoderDecoder"],
)  # fmt: skip
def test_encoder_decoders_are_refused_from_their_configuration(tmp_path, name):
    """No weights are there to be read."""
    config_of(name).save_pretrained(tmp_path)
    for attempt in (check_causal, load_model):
        with pytest.raises(ValueError, match="is an encoder-decoder") as refused:
            attempt(str(tmp_path), {})
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize("how", ["instance", "folder"])
@pytest.mark.parametrize("role", ["model", "ref_model"])
def test_a_trainer_refuses_them_in_every_role(tmp_path, how, role):
    given = transformers.BartForConditionalGeneration(config_of("Bart"))
    if how == "folder":
        given.save_pretrained(tmp_path / "model")
        given = str(tmp_path / "model")
    with pytest.raises(ValueError, match="is an encoder-decoder") as refused:
        trainer(tmp_path, tiny_rows(4), **{role: given})
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["Bart", "MBart", "Pegasus", "Marian", "Whisper"])
def test_their_decoders_alone_are_causal_language_models(tmp_path, name):
    config = config_of(name)
    if name == "Whisper":
        config.max_target_positions = 128
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path / "model")
    made = trainer(tmp_path / "out", tiny_rows(4), model=str(tmp_path / "model"), max_steps=1)
    made.train()
    assert steps(made)[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)


def test_what_transformers_has_no_causal_model_of_is_refused_in_a_sentence(tmp_path):
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a vit model \(ViTConfig\); transformers has no caus"):
        load_model(str(tmp_path), {})


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "it holds nothing"),
        (["train.log", "vocab.txt"], "it holds train.log, vocab.txt"),
        (["a/config.json", "notes"], "models are in .*/a$"),
    ],
)
def test_a_folder_without_a_model_is_told_with_what_it_holds(tmp_path, files, says):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"has no config.json, so .* of a model; {says}"):
        check_causal(str(tmp_path), {}, "model")


def test_what_is_not_there_is_left_to_transformers(tmp_path):
    check_causal(str(tmp_path / "nothing"), {})
    with pytest.raises(OSError, match="nothing"):
        load_model(str(tmp_path / "nothing"), {})


# Weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SHARING, *PADDED_ONLY, *MULTIMODAL])
def test_a_whole_checkpoint_lacks_nothing(tmp_path, name):
    tiny_model(name).save_pretrained(tmp_path)
    load_model(str(tmp_path), {})  # warnings are errors


def test_a_tied_head_is_not_missing(tmp_path):
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_model(str(tmp_path), {})
    assert model.lm_head.weight is model.model.embed_tokens.weight


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_some(weights):
    for name in [name for name in weights if "mlp.up_proj" in name]:
        del weights[name]


def cut_one(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"][:7].clone()


CHANGES = {
    "missing": (lose_some, r"lacks 2 of its weights, the first is model.layers.0.mlp.up_proj.wei"),
    "shape": (
        cut_one,
        r"has 1 of other shapes, the first is model.norm.weight with \(7,\) instead",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_weights_that_would_start_at_random_are_an_error_unless_allowed(folder, kind):
    change, words = CHANGES[kind]
    change_weights(folder, change)
    with pytest.raises(ValueError, match=f"{words}.*or set allow_missing_weights=True"):
        load_model(str(folder), {})
    with pytest.warns(UserWarning, match=f"{words}.*what is not there starts at random"):
        load_model(str(folder), {}, allow_missing=True)


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("role", ["model", "ref_model"])
def test_a_trainer_asks_for_all_weights_in_every_role(tmp_path, folder, kind, role):
    change_weights(folder, CHANGES[kind][0])
    with pytest.raises(ValueError, match=CHANGES[kind][1]):
        trainer(tmp_path, tiny_rows(4), **{role: str(folder)})
    with pytest.warns(UserWarning, match=CHANGES[kind][1]):
        trainer(tmp_path, tiny_rows(4), **{role: str(folder)}, allow_missing_weights=True)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_no_policy(tmp_path, tied):
    config = tiny_config("llama", tie_word_embeddings=tied, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    words = r"has no place, the first is score.weight \(it was saved as a LlamaForSequenceClassifi"
    with pytest.raises(ValueError, match=words):
        load_model(str(tmp_path), {})


def test_weights_beyond_those_of_the_model_are_warned_of(folder):
    change_weights(folder, lambda weights: weights.update({"v_head.weight": torch.ones(2)}))
    with pytest.warns(
        UserWarning, match=r"has 1 for which a LlamaForCausalLM has no place.*v_head"
    ):
        load_model(str(folder), {})


def test_damaged_weights_and_options_that_no_model_takes_are_told(folder):
    with pytest.raises(ValueError, match=r"can't load the model .* argument 'colour'"):
        load_model(str(folder), {"colour": "blue"})
    (folder / "model.safetensors").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"can't load the model .*SafetensorError"):
        load_model(str(folder), {})


@pytest.mark.parametrize("kind", [transformers.LlamaModel, LlamaForSequenceClassification])
def test_a_model_without_a_language_model_head_is_refused(tmp_path, kind):
    model = kind(tiny_config("llama"))
    for role in ("model", "ref_model"):
        with pytest.raises(ValueError, match=f"^{role} is a {kind.__name__}, .* load it with Auto"):
            trainer(tmp_path, tiny_rows(4), **{role: model})


@pytest.mark.slow
def test_quantised_checkpoints_lack_nothing(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "whole")
    for options in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        kind = {"quantization_config": transformers.BitsAndBytesConfig(**options)}
        model = load_model(str(tmp_path / "whole"), kind)
        model.save_pretrained(tmp_path / "saved")
        load_model(str(tmp_path / "saved"), {})


# Adapters -----------------------------------------------------------------------------------------


def test_an_adapter_goes_on_around_the_base_model_that_it_names(folder, adapter):
    wanted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    model = load_model(str(adapter), {}, trainable=True)
    torch.testing.assert_close(logits(model), logits(wanted), rtol=0, atol=0)
    assert fingerprint_of(model).digest == fingerprint_of(wanted).digest
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    frozen = load_model(str(adapter), {})
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_options_of_loading_are_for_the_base_model(adapter):
    model = load_model(str(adapter), {"torch_dtype": "bfloat16", "attn_implementation": "eager"})
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize("start", [True, False])
def test_a_folder_of_an_adapter_is_enough_to_train_it_further(tmp_path, folder, reference, start):
    adapter = saved_adapter(folder, init_lora_weights=start)
    before = load_model(str(adapter), {}, trainable=True)
    trained = PreferenceTrainer(
        str(adapter), args=config(tmp_path / "out", reference=reference), train_dataset=tiny_rows(8)
    )
    torch.testing.assert_close(logits(trained.model), logits(before), rtol=0, atol=0)
    trained.train()
    losses = [entry["loss"] for entry in steps(trained)]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < losses[0]
    trained.save_model()
    again = load_model(str(tmp_path / "out"), {})
    torch.testing.assert_close(logits(again), logits(trained.model))
    with trained.model.disable_adapter():
        bare = logits(trained.model)
    torch.testing.assert_close(bare, logits(tiny_model("llama")))


def test_a_second_adapter_is_refused_before_anything_is_loaded(tmp_path, folder, adapter):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"adapter already and peft_config asks for another; leave"
    ):
        trainer(tmp_path, tiny_rows(4), model=str(adapter), peft_config=peft.LoraConfig(r=2))


def test_a_reference_may_be_named_by_its_adapter(tmp_path, folder, adapter):
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    made = [
        trainer(tmp_path, tiny_rows(8), **options, max_steps=1)
        for options in (
            {"ref_model": str(adapter)},
            {"ref_model": loaded},
            {"reference": f"adapter:{adapter}"},
        )
    ]
    assert len({one.references.record()["fingerprint"] for one in made}) == 1
    losses = [one.evaluate(tiny_rows(8))["eval_loss"] for one in made]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert losses[0] != pytest.approx(math.log(2), rel=1e-3)
    assert not load_reference(str(adapter), tiny_tokenizer(), config(tmp_path)).training


def test_a_base_model_that_is_not_there_is_told_with_what_to_do(folder, adapter):
    edit(adapter / "adapter_config.json", base_model_name_or_path="my/base")
    with pytest.raises(
        OSError, match=r"'my/base', which is no folder \(looked for in /"
    ) as refused:
        load_model(str(adapter), {})
    for words in ("not found on the Hub", "PeftModel.from_pretrained(base, ", "is_trainable=True"):
        assert words in str(refused.value)
    for nothing in (None, ""):
        edit(adapter / "adapter_config.json", base_model_name_or_path=nothing)
        with pytest.raises(ValueError, match=r"does not name its base model\. Correct base_model"):
            load_model(str(adapter), {})


def test_weights_that_an_adapter_lacks_are_an_error_unless_allowed(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    lost = min(weights)
    save_file(
        {k: v for k, v in weights.items() if k != lost}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterError, match=r"1 of its weights .*lora_A.default.weight"):
        load_model(str(adapter), {})
    load_model(str(adapter), {}, allow_missing=True)


def test_an_adapter_with_more_tokens_says_how_to_load_it(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(104)
    lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the embeddings are saved too
        peft.get_peft_model(model, lora).save_pretrained(folder.parent / "more")
    with pytest.raises(AdapterError, match=r"size mismatch .* resize its embeddings"):
        load_model(str(folder.parent / "more"), {})


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("adapter_config.json", b"{", r"adapter_config.json is no JSON object: Expecting"),
        ("adapter_config.json", b"[3]", r"adapter_config.json is no JSON object: "),
        ("adapter_model.safetensors", b"1", r"does not fit the model: Error while deserializing"),
        ("adapter_model.safetensors", None, r"has no weights: no adapter_model.safetensors or"),
    ],
)
def test_a_damaged_adapter_is_told_with_what_is_wrong(adapter, file, content, words):
    (adapter / file).write_bytes(content) if content else (adapter / file).unlink()
    with pytest.raises(ValueError, match=words):
        load_model(str(adapter), {})


def test_an_adapter_of_a_kind_that_peft_does_not_know_is_refused(adapter):
    edit(adapter / "adapter_config.json", peft_type="NEWTUNE")
    with pytest.raises(AdapterError, match=r"no adapter at .* that peft can read: .*NEWTUNE"):
        load_model(str(adapter), {})


def test_an_adapter_for_something_else_is_refused(folder, adapter):
    edit(adapter / "adapter_config.json", task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match="is for the task SEQ_CLS, not CAUSAL_LM"):
        load_model(str(adapter), {})
    virtual = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(model, virtual).save_pretrained(adapter)
    with pytest.raises(ValueError, match="puts virtual tokens before the text"):
        load_model(str(adapter), {})


def test_a_folder_with_a_model_and_an_adapter_is_refused(folder, adapter):
    tiny_model("llama").save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"holds a model \(model.safetensors\) and an adapter"):
        load_model(str(adapter), {})


def test_an_adapter_on_an_adapter_is_refused(folder, adapter):
    (folder.parent / "second").mkdir()
    for file in adapter.iterdir():
        (folder.parent / "second" / file.name).write_bytes(file.read_bytes())
    edit(folder.parent / "second" / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match="which is an adapter itself: merge that one"):
        load_model(str(folder.parent / "second"), {})


def test_a_folder_of_several_adapters_says_which(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]), "one")
    model.save_pretrained(folder.parent / "several")
    with pytest.raises(ValueError, match=r"no model and no adapter, .* give .*several/one"):
        load_model(str(folder.parent / "several"), {})
    assert load_model(str(folder.parent / "several" / "one"), {}).peft_config
    loaded = load_model(str(folder.parent / "several"), {"subfolder": "one"})
    assert loaded.peft_config


def test_a_revision_is_that_of_what_was_named(folder, adapter):
    edit(adapter / "adapter_config.json", revision="its-own")
    here = SavedAdapter.find(str(adapter), {})
    assert here.base_options({"revision": "main", "subfolder": "x"}) == {"revision": "its-own"}
    assert here.base_options({"revision": "asked-for"}) == {"revision": "asked-for"}
    on_hub = SavedAdapter("some/adapter", "some/base", None, {})
    assert on_hub.base_options({"revision": "of-the-adapter"}) == {}


def test_encoder_decoders_under_an_adapter_are_refused(tmp_path, adapter):
    config_of("T5").save_pretrained(tmp_path / "t5")
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "t5"))
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        check_causal(str(adapter), {})


def test_saved_kinds_of_adapters_load_whole(tmp_path, folder):
    kinds = [
        peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head"]),
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
        peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, bias="all"),
        peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3]),
        peft.VeraConfig(r=2, target_modules=["q_proj"]),
        peft.VBLoRAConfig(r=2, target_modules=["q_proj"], num_vectors=4, vector_length=4, topk=2),
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        peft.OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj"]),
    ]
    for number, kind in enumerate(kinds):
        base = AutoModelForCausalLM.from_pretrained(folder)
        model = peft.get_peft_model(base, kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that PiSSA changes the base model
            model.save_pretrained(tmp_path / str(number))
        again = load_model(str(tmp_path / str(number)), {}, trainable=True)
        torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
        trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (again, model)]
        assert trained[0] == trained[1]
