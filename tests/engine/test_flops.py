"""Useful operations: against torch's own counter, and counted by hand."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from prefopt.engine import flops
from prefopt.engine.layout import Example, build_layout
from tests.models import tiny_model


def example(prompt, *completions):
    return Example(np.array(prompt), [np.array(its) for its in completions])


def counted_by_torch(model, tokens, backward):
    """Return the operations of torch's counter in a plain pass, without those of attention."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.arange(3, 3 + tokens)[None]).logits
        if backward:
            logits.sum().backward()
    config = model.config
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return counter.get_total_flops() - (12 if backward else 4) * width * tokens**2


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_dense_operations_are_those_of_torchs_counter(name):
    model = tiny_model(name)
    weights = flops.Weights.of(model)._replace(attention=0)
    if name == "gpt2":
        model.config.head_dim = model.config.n_embd // model.config.n_head
    work = flops.Work(tokens=20, predictions=20)
    assert weights.scoring(work) == counted_by_torch(model, 20, backward=False)
    # The input of the first layer needs no gradient, but an embedding is trained before it.
    assert weights.training(work) == counted_by_torch(model, 20, backward=True)


def test_of_an_adapter_only_its_own_weights_get_a_gradient():
    model = tiny_model("llama")
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    full, lora = flops.Weights.of(model), flops.Weights.of(get_peft_model(model, config))
    # q_proj is 32 x 32 and down_proj 64 -> 32, in two layers.
    adapter = 2 * (4 * (32 + 32) + 4 * (64 + 32))
    assert lora.matrices == full.matrices + adapter
    assert (lora.trained, lora.head_trained) == (adapter, 0)
    assert (full.trained, full.head_trained) == (full.matrices, full.head)
    assert full.head == 97 * 32


def test_of_experts_those_count_that_a_token_is_sent_to():
    model = tiny_model("qwen3_moe")  # 2 of 4 experts of width 16 in each of two layers
    experts = [p for n, p in model.named_parameters() if p.ndim == 3]
    others = flops.Weights.of(model).matrices - sum(p.numel() for p in experts) // 2
    plain = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    routers = 2 * 4 * 32
    assert others in (plain, plain + routers)


def test_attention_counts_the_keys_that_tokens_see():
    model = tiny_model("llama")  # two layers, four heads, 8 wide
    assert flops.Weights.of(model).attention == 2 * 4 * 8
    weights = flops.Weights(0, 0, 0, 0, attention=64)
    assert weights.scoring(flops.Work(keys=5)) == 4 * 64 * 5
    assert weights.training(flops.Work(keys=5)) == 12 * 64 * 5


def test_work_counts_each_shared_token_once():
    # Prompt 3, both completions start with 9: a prefix of 4; then 1 and 2 tokens that predict.
    both = [example([3, 4, 5], [9, 6, 2], [9, 7, 8, 2])]
    # Keys: 1+2+3+4, then 5, then 5+6. Predictions: 9 once, then 6, 2 and 7, 8, 2.
    wanted = flops.Work(tokens=7, keys=10 + 5 + 11, predictions=6)
    assert flops.work_of(build_layout(both), both) == wanted
    assert flops.work_of(build_layout(both, "padded"), both) == wanted
    two = [*both, example([3], [4, 5])]
    assert flops.work_of(build_layout(two, "padded"), two) == flops.Work(9, 26 + 3, 8)
    assert flops.work_of(build_layout([]), []) == flops.Work()
    assert flops.work_of(build_layout([], "padded"), []) == flops.Work()


def test_a_continuation_is_counted_by_itself():
    examples = [example([3, 4, 5], [6, 2])]
    others = [example([3, 4, 5], [7, 8, 2])]
    layout = build_layout(examples, continued=others)
    assert flops.work_of(layout, examples) == flops.Work(4, 10, 2)
    assert flops.continued_work_of(layout) == flops.Work(2, 4 + 5, 3)
    assert flops.continued_work_of(build_layout(examples)) == flops.Work()


def test_padded_rows_are_as_long_as_the_longest():
    assert flops.padded_tokens([example([3, 4], [5], [6, 7, 2]), example([3], [4])]) == 3 * 5
    assert flops.padded_tokens([]) == 0


def test_the_rate_of_products_is_measured_once():
    rate = flops.matmul_rate(torch.float32, 1, size=64)
    assert 1e7 < rate < 1e14
    assert flops.matmul_rate(torch.float32, 1, size=64) is rate


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name, rate):
    assert flops.peak_rate(name) == rate
