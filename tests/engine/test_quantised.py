"""4-bit weights are trained after they were evaluated."""

import pytest
import torch

from prefopt.engine.score import Scorer
from tests.models import tiny_model

pytestmark = pytest.mark.slow


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


def test_gradients_are_the_same_after_an_evaluation(model):
    before = embeddings_gradient(model.train())
    Scorer(model)
    with torch.no_grad():
        model.eval()(torch.tensor([[3, 4, 5]]))
    torch.testing.assert_close(embeddings_gradient(model.train()), before, rtol=0, atol=0)


def test_weights_packed_before_are_an_error_that_names_them(model):
    model.model.layers[0].mlp.down_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"4-bit weights of model\.layers\.0\.mlp\.down_proj"):
        Scorer(model)
