"""4-bit weights are trained after they were evaluated; which weights are quantised, and how."""

import pytest
import torch

from prefopt.engine.quantised import (
    inner_tensors,
    is_quantised,
    layer_without_gradient,
    rounds_inputs,
)
from prefopt.engine.score import Scorer
from tests.models import tiny_model, tiny_rows
from tests.runs import trainer


@pytest.fixture
def model(tmp_path):
    """A 4-bit model on a CPU that multiplies in bf16, or that says so."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # A block of 4-bit weights is 64 wide.
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    for layer in loaded.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = True
    return loaded


def embeddings_gradient(model):
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    model(torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
    gradient, embeddings.grad = embeddings.grad, None
    return gradient


@pytest.mark.slow
def test_gradients_are_the_same_after_an_evaluation(model):
    before = embeddings_gradient(model.train())
    Scorer(model)
    with torch.no_grad():
        model.eval()(torch.tensor([[3, 4, 5]]))
    torch.testing.assert_close(embeddings_gradient(model.train()), before, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_weights_packed_before_are_an_error_that_names_them(model):
    model.model.layers[0].mlp.down_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"4-bit weights of model\.layers\.0\.mlp\.down_proj"):
        Scorer(model)


def test_a_run_makes_no_forward_pass_that_packs_weights(model, tmp_path, monkeypatch):
    """Whatever it tries of a policy before it trains: an adapter's own penalty, its layout."""
    from bitsandbytes.nn import modules

    peft = pytest.importorskip("peft")
    packed = []
    packs = modules._convert_weight_packed_for_cpu
    monkeypatch.setattr(
        modules, "_convert_weight_packed_for_cpu", lambda *of: packed.append(of) or packs(*of)
    )
    policy = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    rows = tiny_rows(4)
    run = trainer(tmp_path / "out", rows, model=policy, eval_dataset=rows, max_steps=1)
    run.train()
    assert run.evaluate()["eval_loss"] > 0
    assert not packed


# What is quantised, and how -----------------------------------------------------------------------


class InTwo(torch.Tensor):
    """A tensor that is made of others, as quantisers make them."""

    @staticmethod
    def __new__(cls, numbers, scale, **how):
        made = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)
        made.numbers, made.scale, made.how = numbers, scale, how
        return made

    def __tensor_flatten__(self):
        return ["numbers", "scale"], self.how

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls(args[0].numbers, args[0].scale, **args[0].how)


def made_of_two(**how):
    return InTwo(torch.ones(2, 2, dtype=torch.int8), torch.tensor([0.5]), **how)


def test_weights_that_no_step_can_change_are_quantised():
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn):
        assert is_quantised(torch.zeros(2, 2, dtype=dtype))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert not is_quantised(torch.zeros(2, 2, dtype=dtype))
    assert is_quantised(made_of_two())


def test_what_a_tensor_is_made_of():
    assert inner_tensors(torch.zeros(2)) == {}
    parts = inner_tensors(made_of_two(block=[1, 2]))
    assert (list(parts), parts[""]) == (["", "numbers", "scale"], {"block": [1, 2]})


def test_layers_that_round_their_inputs():
    layer = torch.nn.Linear(2, 2)
    assert not rounds_inputs(layer, "cpu")
    assert not rounds_inputs(torch.nn.ReLU(), "cpu")
    for how, expected in (
        ({"act_quant_kwargs": None}, False),
        ({"act_quant_kwargs": "per row"}, True),
        ({"activation_quantization": "int8"}, True),
    ):
        layer._parameters["weight"] = made_of_two(**how)
        assert rounds_inputs(layer, "cpu") == expected
    layer = torch.nn.Linear(2, 2)
    layer.activation_qtype = "qint8"
    assert rounds_inputs(layer, "cpu")


class Stored(torch.nn.Module):
    """A linear layer of whole numbers, whose gradient is right, none or that of another."""

    def __init__(self, gradient):
        super().__init__()
        self.in_features, self.gradient = 8, gradient
        numbers = torch.randint(-9, 9, (6, 8), generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(numbers.to(torch.int8), requires_grad=False)

    def forward(self, x):
        if self.gradient == "none":
            return x.detach() @ self.weight.float().T
        y = x @ self.weight.float().T
        return y if self.gradient == "right" else y.detach() + 0.1 * (y - y.detach())


@pytest.mark.parametrize("gradient", ["right", "none", "other"])
def test_a_layer_whose_gradient_is_not_that_of_what_it_computes_is_named(gradient):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Stored(gradient))
    model.dtype = torch.float32
    assert layer_without_gradient(model) == (None if gradient == "right" else "1")


def test_bits_that_are_stored_as_floats_are_quantised_weights():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert not is_quantised(weight)
    weight.quant_state = object()
    assert is_quantised(weight)
