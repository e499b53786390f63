"""The router loss equals the model's own on the same tokens, and reaches the routers."""

import logging
import math

import numpy as np
import pytest
import torch

from prefopt.engine import Scorer
from prefopt.engine.layout import Example
from prefopt.engine.moe import LoadBalancingLoss, routed_tokens
from tests.engine.trees import assert_equal_gradients, batch_of
from tests.models import VOCABULARY, tiny_model, tiny_rows
from tests.runs import steps, trainer

MIXTURES = ["qwen3_moe", "mixtral", "gpt_oss"]


def single_completions(count=4, seed=0):
    """Examples that share nothing, so that every layout holds the same tokens."""
    generator = np.random.default_rng(seed)

    def draw(length):
        return generator.integers(3, VOCABULARY, length)

    return [Example(draw(3 + i), [draw(9 - 2 * i)]) for i in range(count)]


def own_output(model, examples):
    """The model's own forward over padded rows; a text's last token is left out, as in a layout."""
    batch = batch_of(examples, "padded")
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        output_router_logits=True,
    )


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("name", MIXTURES)
def test_it_equals_the_models_own_with_its_gradients(name, layout):
    examples = single_completions()
    model = tiny_model(name)
    wanted = own_output(model, examples).aux_loss
    wanted_gradients = gradients_of(model, wanted)
    scorer = Scorer(model, layout)
    batch = batch_of(examples, layout)
    ours = scorer.score(
        batch, load_balancing_loss=LoadBalancingLoss.of(model, 0.5)
    ).load_balancing_loss
    assert routed_tokens(batch) == sum(
        len(e.prompt_ids) + len(e.completion_ids[0]) - 1 for e in examples
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=0)
    found = gradients_of(model, ours)
    assert_equal_gradients({name: found[name] for name in wanted_gradients}, wanted_gradients)
    assert any("gate" in name or "router" in name for name in found)


def test_tokens_of_a_shared_prefix_count_once():
    prompt = np.arange(3, 12)
    examples = [Example(prompt, [np.array([20, 21, 22]), np.array([30, 31])])]
    model = tiny_model("mixtral")
    load_balancing_loss = LoadBalancingLoss.of(model, 1.0)
    logits = own_output(model, examples).router_logits
    mask = torch.ones(2, 11)
    mask[1, :9] = 0  # the prompt of the second row is the prompt of the first
    mask[1, 10] = 0
    wanted = load_balancing_loss(logits, mask)
    batch = batch_of(examples, "shared_prefix")
    ours = Scorer(model).score(batch, load_balancing_loss=load_balancing_loss).load_balancing_loss
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=0)
    assert routed_tokens(batch) == 9 + 2 + 1


def test_gradient_checkpointing_changes_nothing():
    model = tiny_model("qwen3_moe").train()
    load_balancing_loss = LoadBalancingLoss.of(model, 1.0)
    batch = batch_of(single_completions(), "shared_prefix")
    scorer = Scorer(model)
    wanted = gradients_of(
        model, scorer.score(batch, load_balancing_loss=load_balancing_loss).load_balancing_loss
    )
    old = getattr(model, "gradient_checkpointing_enable", None)
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    ours = gradients_of(
        model, scorer.score(batch, load_balancing_loss=load_balancing_loss).load_balancing_loss
    )
    assert_equal_gradients({name: ours[name] for name in wanted}, wanted)


def test_without_a_weight_it_is_the_configurations():
    model = tiny_model("qwen3_moe", router_aux_loss_coef=0.25)
    assert LoadBalancingLoss.of(model).weight == 0.25
    assert LoadBalancingLoss.of(model, 0.5).weight == 0.5
    assert LoadBalancingLoss.of(model, 0.0) is None
    assert LoadBalancingLoss.of(tiny_model("llama")) is None
    assert LoadBalancingLoss.of(tiny_model("llama"), 0.0) is None


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "mamba"])
def test_a_weight_for_a_model_without_router_logits_is_an_error(name):
    with pytest.raises(ValueError, match="cannot have a load-balancing loss"):
        LoadBalancingLoss.of(tiny_model(name), 0.01)


def test_a_negative_weight_is_an_error():
    with pytest.raises(ValueError, match="must not be negative"):
        LoadBalancingLoss.of(tiny_model("mixtral"), -0.1)


def test_a_class_that_computes_another_loss_is_an_error_or_a_warning(caplog):
    model = tiny_model("mixtral")
    model.num_experts_per_tok = 1  # what its forward uses, and its configuration does not say
    with pytest.raises(ValueError, match="in a way that prefopt does not support"):
        LoadBalancingLoss.of(model, 0.1)
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        assert LoadBalancingLoss.of(model) is None
    assert "gets no load-balancing loss" in caplog.text


# In training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_trainer_adds_it_by_tokens_and_logs_it(tmp_path, accumulated):
    trained = trainer(
        tmp_path,
        tiny_rows(8),
        model=tiny_model("qwen3_moe"),
        router_aux_loss_coef=0.1,
        max_steps=1,
        per_device_train_batch_size=8 // accumulated,
        gradient_accumulation_steps=accumulated,
    )
    trained.train()
    first = steps(trained)[0]
    assert first["aux_loss"] > 1
    assert first["loss"] == pytest.approx(math.log(2) + 0.1 * first["aux_loss"], rel=1e-5)


def test_training_balances_the_experts(tmp_path):
    trained = trainer(
        tmp_path,
        tiny_rows(8),
        model=tiny_model("mixtral"),
        router_aux_loss_coef=10.0,
        learning_rate=3e-3,
        max_steps=15,
        per_device_train_batch_size=8,
    )
    trained.train()
    logged = [entry["aux_loss"] for entry in steps(trained)]
    assert logged[0] > 2.1
    assert logged[-1] < 2.02  # 2 experts a token: 2 where they are chosen evenly


def test_evaluation_logs_it_beside_the_preference_loss(tmp_path):
    trained = trainer(
        tmp_path,
        tiny_rows(8),
        model=tiny_model("qwen3_moe"),
        eval_dataset=tiny_rows(8),
        router_aux_loss_coef=0.1,
    )
    found = trained.evaluate()
    assert found["eval_loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert found["eval_aux_loss"] > 1


def test_the_trainer_refuses_a_weight_where_there_are_no_routers(tmp_path):
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot have a load-balancing loss"):
        trainer(tmp_path, tiny_rows(4), router_aux_loss_coef=0.1)
