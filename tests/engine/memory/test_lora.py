"""A layer with a LoRA adapter computes what peft's does, and is left to peft where that is more."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from prefopt.engine.memory import lora
from prefopt.engine.memory.lora import is_lora_layer, lora_linear, plain_adapter
from prefopt.engine.memory.recompute import RecomputingLayers
from tests.engine.memory.test_recompute import stored_bytes
from tests.models import tiny_model
from tests.quantisers import load, save_base


class Two(nn.Module):
    """Two layers in float64, the second with a bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(7, 5, bias=False).double()
        self.second = nn.Linear(5, 6).double()

    def forward(self, hidden):
        return self.second(self.first(hidden))


def adapted(**options):
    """Return both layers with adapters that do something."""
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["first", "second"]} | options
    config = LoraConfig(init_lora_weights=False, **options)
    return get_peft_model(Two(), config, autocast_adapter_dtype=False).double()


def layers(model):
    found = [module for module in model.modules() if is_lora_layer(module)]
    assert len(found) == 2
    return found


def test_output_and_gradients_are_pefts():
    model = adapted()
    hidden = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    weights = [hidden, *(one for one in model.parameters() if one.requires_grad)]
    own = model(hidden)
    target = torch.randn_like(own)
    own_gradients = torch.autograd.grad(own, weights, target)
    first, second = layers(model)
    middle = lora_linear(hidden, plain_adapter(first, hidden))
    mine = lora_linear(middle, plain_adapter(second, middle))
    torch.testing.assert_close(mine, own)
    torch.testing.assert_close(torch.autograd.grad(mine, weights, target), own_gradients)


def test_a_fresh_adapter_changes_no_bit():
    base = Two()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["first"])).double()
    layer = next(module for module in model.modules() if is_lora_layer(module))
    hidden = torch.randn(9, 7, dtype=torch.float64)
    assert torch.equal(lora_linear(hidden, plain_adapter(layer, hidden)), layer.base_layer(hidden))


@pytest.mark.parametrize("frozen", [True, False])
def test_an_input_without_gradient_gets_none(frozen):
    layer = layers(adapted())[0]
    hidden = torch.randn(3, 7, dtype=torch.float64, requires_grad=not frozen)
    lora_linear(hidden, plain_adapter(layer, hidden)).sum().backward()
    assert (hidden.grad is None) == frozen
    assert layer.base_layer.weight.grad is None
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0


def _two_adapters():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"]))
    model.base_model.set_adapter(["default", "other"])
    return model


def _disabled():
    model = adapted()
    model.base_model.disable_adapter_layers()
    return model


def _merged():
    model = adapted()
    model.merge_adapter()
    return model


def _trained_base():
    model = adapted()
    for layer in layers(model):
        layer.base_layer.weight.requires_grad_()
    return model


def _hooked():
    model = adapted()
    for layer in layers(model):
        layer.lora_A["default"].register_forward_hook(lambda module, given, output: 2 * output)
    return model


@pytest.mark.parametrize(
    "make",
    [
        _two_adapters,
        _disabled,
        _merged,
        _trained_base,
        _hooked,
        lambda: adapted(lora_dropout=0.5).train(),
        lambda: adapted(use_dora=True),
        pytest.param(
            lambda: adapted(lora_bias=True), marks=pytest.mark.filterwarnings("ignore:.lora_bias")
        ),
        lambda: adapted(use_rslora=True).float(),  # the input stays float64
    ],
)
def test_whatever_else_peft_computes_is_left_to_it(make):
    model = make()
    hidden = torch.randn(3, 7, dtype=torch.float64)
    assert plain_adapter(layers(model)[0], hidden) is None


def test_dropout_does_nothing_outside_training_and_other_scales_are_known():
    for model in (adapted(lora_dropout=0.5).eval(), adapted(use_rslora=True)):
        layer, hidden = layers(model)[0], torch.randn(3, 7, dtype=torch.float64)
        mine = lora_linear(hidden, plain_adapter(layer, hidden))
        torch.testing.assert_close(mine, layer(hidden))


def _distance(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_as_near_to_the_exact_as_pefts(own):
    model = adapted().float()
    for layer in layers(model):
        layer.base_layer.to(own)
    exactly = copy.deepcopy(model).double()
    hidden = torch.randn(400, 7)
    target = torch.randn(400, 6)

    def passes(model, forward, hidden):
        hidden = hidden.clone().requires_grad_()
        weights = [hidden, *(one for one in model.parameters() if one.requires_grad)]
        output = forward(model, hidden)
        return [output, *torch.autograd.grad(output, weights, target.to(output.dtype))]

    def in_one_step(model, hidden):
        for layer in layers(model):
            hidden = lora_linear(hidden, plain_adapter(layer, hidden))
        return hidden

    exact = passes(exactly, lambda model, hidden: model(hidden), hidden.double())
    with torch.autocast("cpu", torch.bfloat16):
        theirs = passes(model, lambda model, hidden: model(hidden), hidden)
        ours = passes(model, in_one_step, hidden)
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype
        assert 0 < _distance(one, truth) < 1.5 * _distance(other, truth) < 0.01


def test_autocast_keeps_no_copy_of_the_weights():
    layer, hidden = layers(adapted().float())[0], torch.randn(50, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        kept, output = stored_bytes(lambda: lora_linear(hidden, plain_adapter(layer, hidden)))
    assert output.dtype == torch.bfloat16
    weights = layer.base_layer.weight.nbytes + 2 * 3 * (7 + 5)
    assert kept == hidden.nbytes + 2 * 50 * 3 + weights


@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
def test_under_autocast_4_bits_are_made_dense_in_its_dtype(hidden):
    model = adapted_of_4_bits(compute_dtype=torch.bfloat16)
    layer = layers(model)[0]
    layer.base_layer.weight.quant_state.dtype = torch.bfloat16
    given = torch.randn(30, 64, dtype=hidden)
    assert plain_adapter(layer, given) is None  # peft computes the adapter in float32
    with torch.autocast("cpu", torch.bfloat16):
        adapter = plain_adapter(layer, given)
        if hidden == torch.float32:  # bitsandbytes returns float32 again
            assert adapter is None
            return
        ours, theirs = lora_linear(given, adapter), layer(given)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.05)


def assert_an_mlp_stores_no_product(model):
    """Of three adapters of rank 2 the MLP keeps their inner products, its input, gate and up."""
    mlp = model.base_model.model.model.layers[0].mlp
    hidden = torch.randn(1, 50, mlp.hidden_size, requires_grad=True)
    with RecomputingLayers(mlp).active():
        kept, _ = stored_bytes(lambda: mlp(hidden))
    weights = sum(weight.nbytes for weight in mlp.parameters())
    inner = 3 * 4 * 50 * 2  # of three adapters
    assert kept == weights + inner + hidden.nbytes + 2 * 4 * 50 * mlp.intermediate_size


def test_an_mlp_whose_layers_have_adapters_stores_no_product():
    config = LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"])
    assert_an_mlp_stores_no_product(get_peft_model(tiny_model("llama"), config))


def test_arguments_for_peft_reach_it():
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    layer = next(module for module in model.modules() if is_lora_layer(module))
    hidden = torch.randn(2, 3, layer.in_features)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    with RecomputingLayers(layer).active():
        assert "forward" in vars(layer)
        plain = layer(hidden, adapter_names=["__base__", "default"])
    torch.testing.assert_close(plain[0], layer.base_layer(hidden)[0])
    torch.testing.assert_close(plain[1], layer(hidden)[1])


# 4 bits -------------------------------------------------------------------------------------------

KINDS_OF_4_BITS = {
    "nf4": {"quant_type": "nf4", "compress_statistics": False},
    "nf4, double": {"quant_type": "nf4", "compress_statistics": True},
    "fp4": {"quant_type": "fp4", "compress_statistics": False},
    "stored as floats": {"quant_type": "nf4", "quant_storage": torch.float32},
}


class TwoOf4Bits(Two):
    """The same in float32 and 4 bits, wide enough for a block of them; weights are frozen."""

    def __init__(self, **options):
        bitsandbytes = pytest.importorskip("bitsandbytes")
        super().__init__()
        options = {"compute_dtype": torch.float32} | options
        self.first = bitsandbytes.nn.Linear4bit(64, 32, bias=False, **options)
        self.second = bitsandbytes.nn.Linear4bit(32, 48, **options)
        self.to("cpu").requires_grad_(False)


def adapted_of_4_bits(**options):
    config = LoraConfig(init_lora_weights=False, r=3, target_modules=["first", "second"])
    return get_peft_model(TwoOf4Bits(**options), config)


@pytest.mark.parametrize("kind", KINDS_OF_4_BITS)
def test_output_and_gradients_of_4_bit_layers_are_pefts(kind):
    model = adapted_of_4_bits(**KINDS_OF_4_BITS[kind])
    hidden = torch.randn(2, 4, 64, requires_grad=True)
    weights = [hidden, *(one for one in model.parameters() if one.requires_grad)]
    own = model(hidden)
    target = torch.randn_like(own)
    own_gradients = torch.autograd.grad(own, weights, target)
    first, second = layers(model)
    middle = lora_linear(hidden, plain_adapter(first, hidden))
    mine = lora_linear(middle, plain_adapter(second, middle))
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(mine, own, **close)
    torch.testing.assert_close(torch.autograd.grad(mine, weights, target), own_gradients, **close)


def test_4_bits_are_made_dense_once_in_each_pass_and_not_kept(monkeypatch):
    model, made = adapted_of_4_bits(), []
    dense = lora.dequantised
    monkeypatch.setattr(
        lora, "dequantised", lambda *its: made.append(tuple(its[1].shape)) or dense(*its)
    )
    layer, hidden = layers(model)[0], torch.randn(9, 64, requires_grad=True)
    kept, output = stored_bytes(lambda: lora_linear(hidden, plain_adapter(layer, hidden)))
    assert made == [(32, 64)]
    output.sum().backward()
    assert made == 2 * [(32, 64)]
    adapter = sum(one.nbytes for one in (layer.lora_A, layer.lora_B) for one in one.parameters())
    assert kept == hidden.nbytes + 4 * 9 * 3 + adapter + 32 * 64 // 2


def test_a_4_bit_mlp_with_adapters_stores_no_product(tmp_path):
    config = LoraConfig(r=2, target_modules="all-linear")
    assert_an_mlp_stores_no_product(get_peft_model(load(save_base(tmp_path), "nf4"), config))


def _packed():
    model = adapted_of_4_bits()
    for layer in layers(model):
        layer.base_layer.weight.quant_state.packing_format_for_cpu = True
    return model


def _hooked_base():
    model = adapted_of_4_bits()
    for layer in layers(model):
        layer.base_layer.register_forward_hook(lambda module, given, output: 2 * output)
    return model


@pytest.mark.parametrize(
    "make",
    [_packed, _hooked_base, lambda: adapted_of_4_bits(compute_dtype=torch.bfloat16)],
    ids=["packed", "hooked", "computes in bfloat16"],
)
def test_4_bit_layers_that_compute_otherwise_are_left_to_peft(make):
    assert plain_adapter(layers(make())[0], torch.randn(3, 64)) is None


def test_4_bits_of_another_dtype_are_left_to_peft():
    """The forward pass of bitsandbytes makes them dense in the input's dtype, the backward not."""
    layer = layers(adapted_of_4_bits())[0]
    assert plain_adapter(layer, torch.randn(3, 64)) is not None
    layer.base_layer.weight.quant_state.dtype = torch.bfloat16
    assert plain_adapter(layer, torch.randn(3, 64)) is None
