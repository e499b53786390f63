"""Fingerprints: the same for what scores the same, another for a single changed weight."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.reference import fingerprint_of
from prefopt.reference.fingerprint import weights_digest
from prefopt.training.model import switch_off_dropout
from tests.models import SHARING, tiny_model

peft = pytest.importorskip("peft")


def digest(model, **options):
    return fingerprint_of(model, **options).digest


def with_lora(model, name="default", **options):
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    return peft.get_peft_model(model, peft.LoraConfig(**fields), adapter_name=name)


@pytest.fixture
def model():
    return tiny_model("llama")


# The same -----------------------------------------------------------------------------------------


def test_a_copy_has_the_same(model):
    assert digest(model) == digest(copy.deepcopy(model))


@pytest.mark.parametrize("name", SHARING)
def test_saving_and_loading_keeps_it(tmp_path, name):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    assert digest(AutoModelForCausalLM.from_pretrained(tmp_path)) == digest(model)


def test_what_is_only_for_training_has_no_part_in_it(model):
    before = digest(model)
    model.requires_grad_(False).train()
    model.config.use_cache = False
    model.config.pad_token_id = 5
    model.config.attention_dropout = 0.3
    model.gradient_checkpointing_enable()
    model.set_attn_implementation("sdpa")
    switch_off_dropout(model)
    assert digest(model) == before


def test_strides_have_no_part_in_it(model):
    before = digest(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert digest(model) == before


@pytest.mark.parametrize("options", [
    {},
    {"r": 4},
    {"lora_alpha": 99},
    {"use_dora": True},
    {"target_modules": "all-linear"},
    {"modules_to_save": ["lm_head"]},
    {"trainable_token_indices": [3, 4]},
    {"bias": "all"},
])  # fmt: skip
def test_under_an_adapter_the_base_is_the_bare_model(model, options):
    bare = digest(model)
    for seed in range(2):
        torch.manual_seed(seed)
        policy = with_lora(copy.deepcopy(model), **options)
        assert digest(policy, adapter_off=True) == bare
        assert digest(policy) != bare


@pytest.mark.parametrize("config", [
    lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
])  # fmt: skip
def test_other_adapters_leave_the_base_alone_too(model, config):
    bare = digest(model)
    assert digest(peft.get_peft_model(model, config()), adapter_off=True) == bare


def test_a_trained_adapter_has_no_part_in_its_base(model):
    policy = with_lora(model, modules_to_save=["lm_head"])
    before = digest(policy, adapter_off=True)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert digest(policy, adapter_off=True) == before


@pytest.mark.parametrize("name", ["model", "weight", "layers", "0", "lora_A", "q_proj"])
def test_an_adapter_may_be_called_like_a_part_of_the_model(model, name):
    """Or what belongs to the base is taken for the adapter's, and two bases for one."""
    bare = digest(model)
    policy = with_lora(model, name=name)
    assert digest(policy, adapter_off=True) == bare
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert digest(policy, adapter_off=True) != bare


def test_the_name_of_an_active_adapter_does_not_matter(model):
    torch.manual_seed(0)
    first = digest(with_lora(copy.deepcopy(model), name="default"))
    torch.manual_seed(0)
    assert digest(with_lora(model, name="policy")) == first


def test_an_adapter_that_is_not_active_has_no_part_in_it(model):
    policy = with_lora(model)
    before = digest(policy)
    torch.manual_seed(5)
    config = peft.LoraConfig(r=4, target_modules=["k_proj"], init_lora_weights=False)
    policy.add_adapter("other", config)
    assert digest(policy) == before
    policy.set_adapter("other")
    assert digest(policy) != before


def test_a_saved_adapter_is_the_same_when_loaded(model, tmp_path):
    policy = with_lora(copy.deepcopy(model), init_lora_weights=False, modules_to_save=["lm_head"])
    policy.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert digest(loaded) == digest(policy)


# Another ------------------------------------------------------------------------------------------


def test_one_changed_weight_anywhere_changes_it(model):
    seen = {digest(model)}
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        changed = copy.deepcopy(model)
        weight = changed.get_parameter(name).data.view(-1)
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))  # the last bit
        seen.add(digest(changed))
    assert len(seen) == 1 + len(names)


def test_weights_that_change_places_change_it(model):
    before = digest(model)
    layers = model.model.layers
    first, second = layers[0].mlp.up_proj.weight, layers[1].mlp.up_proj.weight
    first.data, second.data = second.data, first.data
    assert digest(model) != before


def test_a_weight_is_not_missed_among_tied_ones():
    model = tiny_model("gemma2")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    before = digest(model)
    untied = copy.deepcopy(model)
    untied.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert weights_digest(untied) == weights_digest(model)
    with torch.no_grad():
        untied.lm_head.weight[3, 3] += 1
        model.model.embed_tokens.weight[3, 3] += 1
    assert len({before, digest(untied), digest(model)}) == 3


def test_large_tensors_are_digested_to_the_end(model, monkeypatch):
    whole = digest(model)
    monkeypatch.setattr("prefopt.reference.fingerprint._BLOCK_BYTES", 1000)
    in_blocks = digest(model)
    model.lm_head.weight.data[-1, -1] += 1
    assert len({whole, in_blocks, digest(model)}) == 3


def test_weights_of_an_adapter_change_it(model):
    policy = with_lora(model, init_lora_weights=False, modules_to_save=["lm_head"])
    seen = {digest(policy)}
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data.view(-1)[0] += 1
        seen.add(digest(policy))
    assert len(seen) == 1 + len(trained)


def test_how_much_an_adapter_counts_changes_it(model):
    policy = with_lora(model, init_lora_weights=False)
    seen = {digest(policy)}
    layer = policy.base_model.model.model.layers[1].self_attn.q_proj
    layer.set_scale("default", 2.0)
    seen.add(digest(policy))
    policy.base_model.disable_adapter_layers()
    seen.add(digest(policy))
    assert len(seen) == 3


def test_the_seed_of_an_adapter_matters_where_it_is_not_switched_off(model):
    digests = set()
    for seed in range(2):
        torch.manual_seed(seed)
        digests.add(digest(with_lora(copy.deepcopy(model))))
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rms_norm_eps": 1e-3}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("mistral", {"sliding_window": 7}),
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("gemma2", {"query_pre_attn_scalar": 9}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"attention_multiplier": 0.6}),
        ("qwen3_moe", {"num_experts_per_tok": 1}),
    ],
)
def test_configuration_that_changes_scores_changes_it(name, change):
    model = tiny_model(name)
    before = digest(model)
    for field, value in change.items():
        assert getattr(model.config, field) != value
        setattr(model.config, field, value)
    assert digest(model) != before


def test_precision_changes_it(model):
    digests = [digest(model), digest(model, autocast="bf16"), digest(model, autocast="fp16")]
    digests.append(digest(copy.deepcopy(model).to(torch.bfloat16)))
    digests.append(digest(copy.deepcopy(model).to(torch.bfloat16).float()))  # has been rounded
    assert len(set(digests)) == 5


def test_frequencies_that_were_rounded_with_the_weights_change_it(tmp_path):
    model = tiny_model("llama").bfloat16()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert weights_digest(loaded) == weights_digest(model)
    text = {"input_ids": torch.arange(60)[None]}
    with torch.no_grad():
        assert not torch.equal(loaded(**text).logits, model(**text).logits)
    assert digest(loaded) != digest(model) == digest(tiny_model("llama").bfloat16())


def test_the_class_of_the_model_changes_it(model):
    class Other(type(model)):
        pass

    before = digest(model)
    model.__class__ = Other
    assert digest(model) != before


@pytest.mark.slow
def test_quantisation_changes_it(model, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model.save_pretrained(tmp_path)

    def loaded(**options):
        config = BitsAndBytesConfig(load_in_4bit=True, **options)
        return AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)

    quantised = loaded(bnb_4bit_quant_type="nf4")
    digests = [digest(model), digest(quantised), digest(loaded(bnb_4bit_quant_type="fp4"))]
    digests.append(digest(loaded(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")))
    assert len(set(digests)) == 4
    assert digest(loaded(bnb_4bit_quant_type="nf4")) == digests[1]
    assert digest(with_lora(quantised), adapter_off=True) == digests[1]


@pytest.mark.slow
def test_weights_that_were_packed_on_cpu_are_refused_as_listing_them_would_spoil_them(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    text = torch.arange(3, 12)[None]
    with torch.no_grad():
        logits = packed(input_ids=text).logits
        state = packed.model.layers[0].mlp.up_proj.weight.quant_state
        if not getattr(state, "packing_format_for_cpu", False):
            pytest.skip("this CPU packs no 4-bit weights")
        with pytest.raises(ValueError, match="were packed for inference"):
            digest(packed)
        torch.testing.assert_close(packed(input_ids=text).logits, logits)


def test_the_facts_say_what_it_is(model):
    policy = with_lora(model, r=2)
    name, facts = fingerprint_of(policy, autocast="bf16")
    assert len(name) == 32
    assert facts["model"] == "LlamaForCausalLM"
    assert facts["dtype"] == "float32"
    assert facts["autocast"] == "bf16"
    assert facts["adapters"][0]["r"] == 2
    assert facts["parameters"] == sum(weight.numel() for weight in policy.parameters())
