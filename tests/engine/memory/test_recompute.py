"""Norms and MLPs that recompute give the same numbers, and are replaced only where they do."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from prefopt.engine import Scorer
from prefopt.engine.memory import recompute
from tests.engine.trees import (
    assert_equal_gradients,
    batch_of,
    gradients,
    trees,
    without_recomputation,
)
from tests.models import tiny_model

NORMS = (LlamaRMSNorm, Olmo2RMSNorm, Gemma3RMSNorm)
# How many norms and MLPs of each tiny model recompute.
RECOMPUTING = {
    "llama": 7,
    "qwen2": 7,
    "qwen3": 11,
    "qwen3_moe": 9,
    "mistral": 7,
    "gemma2": 11,
    "gemma3": 22,
    "phi3": 5,
    "cohere": 2,
    "olmo2": 11,
    "smollm3": 13,
    "gpt_oss": 5,
    "gpt2": 0,
    "opt": 0,
}


def stored_bytes(compute):
    """Return the bytes of the tensors that a computation stores for its backward pass."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    return sum(kept.values()), result


@pytest.mark.parametrize("name", sorted(RECOMPUTING))
def test_number_of_modules_that_recompute_in_each_architecture(name):
    assert len(recompute.RecomputingLayers(tiny_model(name).base_model)) == RECOMPUTING[name]


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "olmo2", "cohere", "phi3"])
def test_log_probs_to_the_last_bit_and_gradients_are_those_of_the_model_itself(
    monkeypatch, name, layout
):
    model = tiny_model(name)
    with torch.no_grad():  # weights of norms that are 0 or 1 would hide how they are applied
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    scorer = Scorer(model, layout)
    batch = batch_of(trees(), layout)
    less, mine = stored_bytes(lambda: scorer.score(batch).logps)
    my_gradients = gradients(model, mine)
    without_recomputation(monkeypatch)
    more, own = stored_bytes(lambda: scorer.score(batch).logps)
    own_gradients = gradients(model, own)
    assert torch.equal(mine, own)
    assert_equal_gradients(my_gradients, own_gradients)
    assert less < more


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_norms_of_each_style_and_dtype(kind, dtype, weights):
    torch.manual_seed(0)
    norm = kind(24).to(weights)
    with torch.no_grad():
        norm.weight += 0.3 * torch.randn(24)
    layers = recompute.RecomputingLayers(norm)
    assert len(layers) == 1
    hidden = (3 * torch.randn(2, 5, 24)).to(dtype).requires_grad_()
    upstream = torch.randn(2, 5, 24)
    own = norm(hidden)
    expected = torch.autograd.grad((own * upstream).sum(), [hidden, norm.weight])
    with layers.active():
        less, ours = stored_bytes(lambda: norm(hidden))
    found = torch.autograd.grad((ours * upstream).sum(), [hidden, norm.weight])
    assert ours.dtype == own.dtype
    assert torch.equal(ours, own)
    assert less == hidden.nbytes + norm.weight.nbytes + 4 * 10
    rounding = 1e-5 if dtype == weights == torch.float32 else 3e-2
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("style", recompute._STYLES)
def test_gradient_of_norms_is_the_derivative(style):
    # Norms compute in float32 whatever they get, so no gradcheck: the same in double precision.
    torch.manual_seed(1)
    hidden, weight, direction = torch.randn(4, 8), torch.rand(8) + 0.5, torch.randn(4, 8)
    variables = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    recompute._RMSNorm.apply(*variables, 1e-6, style).mul(direction).sum().backward()
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    normed = exact[0] * torch.rsqrt(exact[0].pow(2).mean(-1, keepdim=True) + 1e-6)
    (normed * (exact[1] + style.offset) * direction).sum().backward()
    for ours, reference in zip(variables, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), reference.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(approximate="tanh"), nn.ReLU()])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gated_products_by_gradcheck(activation, with_bias):
    torch.manual_seed(2)

    def double(*shape):
        return torch.randn(*shape, dtype=torch.double, requires_grad=True)

    gate, up, weight, bias = double(2, 3, 6), double(2, 3, 6), double(4, 6), double(4)
    bias = bias if with_bias else None
    assert torch.autograd.gradcheck(recompute._Gated.apply, (gate, up, weight, bias, activation))
    assert torch.autograd.gradcheck(recompute._Gated.apply, (gate, up, None, None, activation))


def test_an_mlp_stores_its_input_gate_and_up():
    mlp = tiny_model("llama").model.layers[0].mlp
    hidden = torch.randn(1, 50, mlp.hidden_size, requires_grad=True)
    with recompute.RecomputingLayers(mlp).active():
        kept, _ = stored_bytes(lambda: mlp(hidden))
    weights = sum(weight.nbytes for weight in mlp.parameters())
    assert kept == weights + hidden.nbytes + 2 * 4 * 50 * mlp.intermediate_size


@pytest.mark.parametrize(
    "targets", [["q_proj"], ["gate_proj", "up_proj", "down_proj"], "all-linear"]
)
def test_lora_trains_as_without(monkeypatch, targets):
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(tiny_model("llama"), config)
    scorer = Scorer(model)
    batch = batch_of(trees(), scorer.layout)
    mine = gradients(model, scorer.score(batch).logps)
    without_recomputation(monkeypatch)
    own = gradients(model, scorer.score(batch).logps)
    assert_equal_gradients(mine, own)


def test_autocast_gives_the_same_bits(monkeypatch):
    model = tiny_model("llama")
    scorer = Scorer(model)
    batch = batch_of(trees(), scorer.layout)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    mine = scorer.score(batch, context=autocast).logps
    my_gradients = gradients(model, mine)
    without_recomputation(monkeypatch)
    own = scorer.score(batch, context=autocast).logps
    own_gradients = gradients(model, own)
    assert torch.equal(mine, own)
    for name, gradient in own_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(my_gradients[name], gradient, rtol=0.0, atol=0.03 * scale)


def test_the_model_is_as_it_was_afterwards():
    model = tiny_model("llama")
    layers = recompute.RecomputingLayers(model.base_model)
    with layers.active():
        assert "forward" in vars(model.model.norm)
    assert not any("forward" in vars(module) for module in model.modules())
    with torch.no_grad(), layers.active():
        assert not any("forward" in vars(module) for module in model.modules())


def test_checkpointed_layers_and_forwards_set_by_others_are_left_alone():
    model = tiny_model("llama")
    layers = recompute.RecomputingLayers(model.base_model)
    own = model.model.norm.forward
    model.model.norm.forward = lambda hidden: own(hidden)
    theirs = vars(model.model.norm)["forward"]
    with layers.active():
        assert vars(model.model.norm)["forward"] is theirs
    assert vars(model.model.norm)["forward"] is theirs
    assert len(recompute.RecomputingLayers(model.base_model)) == RECOMPUTING["llama"] - 1
    model.gradient_checkpointing_enable()
    with layers.active():
        assert "forward" not in vars(model.model.layers[0].mlp)


class HalfRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        return 0.5 * super().forward(hidden_states)


class RMSNormAfterAResidual(LlamaRMSNorm):
    def forward(self, hidden_states, residual=None):
        return super().forward(hidden_states if residual is None else hidden_states + residual)


class GatedMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
        self.act_fn = nn.SiLU()

    def forward(self, hidden):
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class TwiceGated(GatedMLP):
    def forward(self, hidden):
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden) ** 2)


class DropsOut(GatedMLP):
    def forward(self, hidden):
        return nn.functional.dropout(super().forward(hidden), 0.5, self.training)


@pytest.mark.parametrize(
    "module",
    [
        HalfRMSNorm(8),
        RMSNormAfterAResidual(8),
        TwiceGated(),
        DropsOut().eval(),
        nn.RMSNorm(8, elementwise_affine=False),
    ],
)
def test_a_module_that_computes_something_else_is_left_alone(module):
    assert len(recompute.RecomputingLayers(GatedMLP())) == 1
    random, training = torch.get_rng_state(), module.training
    assert len(recompute.RecomputingLayers(module)) == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert module.training == training


def test_the_argument_may_be_named():
    norm = LlamaRMSNorm(8)
    hidden = torch.randn(2, 8)
    with recompute.RecomputingLayers(norm).active():
        assert torch.equal(norm(hidden_states=hidden), norm(hidden))


def test_lora_with_dropout_recomputes_and_drops_the_same(monkeypatch):
    config = LoraConfig(r=4, target_modules=["down_proj"], lora_dropout=0.5)
    model = get_peft_model(tiny_model("llama"), config).train()
    scorer = Scorer(model)
    batch = batch_of(trees(), scorer.layout)
    found = len(recompute.RecomputingLayers(model.base_model.model.model))
    assert found == RECOMPUTING["llama"] + 2
    torch.manual_seed(4)
    mine = scorer.score(batch).logps
    without_recomputation(monkeypatch)
    torch.manual_seed(4)
    assert torch.equal(scorer.score(batch).logps, mine)
