"""What scoring leaves of a model as it was, and heads, adapters and models out of the ordinary.

That scores and gradients are right on every architecture is tested in ``test_architectures.py``.
"""

import logging

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from prefopt.engine import Scorer
from tests.engine.trees import (
    assert_equal_gradients,
    batch_of,
    gradients,
    plain_logps,
    trees,
    without_recomputation,
)
from tests.models import tiny_model


def test_an_unknown_layout_is_an_error():
    with pytest.raises(ValueError, match="layout must be"):
        Scorer(tiny_model("llama"), "packed")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_a_model_in_bfloat16_shares_as_well(name):
    wanted = Scorer(tiny_model(name)).score(batch_of(trees(), "shared_prefix")).logps
    scorer = Scorer(tiny_model(name).bfloat16())
    assert scorer.layout == "shared_prefix"
    # Seen: 0.065 nats, of logps of up to 47.
    logps = scorer.score(batch_of(trees(), "shared_prefix")).logps
    torch.testing.assert_close(logps, wanted, rtol=0, atol=0.15)


def test_autocast_computes_attention_in_its_dtype():
    scorer = Scorer(tiny_model("llama"))
    batch = batch_of(trees(), "shared_prefix")
    wanted = scorer.score(batch).logps
    logps = scorer.score(batch, context=lambda: torch.autocast("cpu", torch.bfloat16)).logps
    torch.testing.assert_close(logps, wanted, rtol=0, atol=0.15)
    assert (logps != wanted).any()
    assert all(torch.isfinite(g).all() for g in gradients(scorer.model, logps).values())


def test_per_token_logps_sum_to_logps():
    scorer = Scorer(tiny_model("llama"))
    scores = scorer.score(batch_of(trees(), "shared_prefix"))
    parts = scores.per_token_logps.split(scores.lengths.tolist())
    torch.testing.assert_close(torch.stack([part.sum() for part in parts]), scores.logps)


def test_gradient_checkpointing_changes_nothing(monkeypatch):
    without_recomputation(monkeypatch)  # so that both runs compute alike
    model = tiny_model("llama").train()
    scorer = Scorer(model)
    batch = batch_of(trees(), "shared_prefix")
    wanted = gradients(model, scorer.score(batch).logps)
    # Renamed in transformers 5.2x; the old name warns there.
    old = getattr(model, "gradient_checkpointing_enable", None)
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    ours = gradients(model, scorer.score(batch).logps)
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-7)


def test_layers_checkpointed_from_outside_change_nothing():
    """As accelerate does for FSDP: the layers are wrapped after the scorer was made."""
    model = tiny_model("llama").train()
    scorer = Scorer(model)
    batch = batch_of(trees(), "shared_prefix")
    wanted = gradients(model, scorer.score(batch).logps)
    layers = model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer)
    ours = gradients(model, scorer.score(batch).logps)
    ours = {name.replace("_checkpoint_wrapped_module.", ""): each for name, each in ours.items()}
    assert_equal_gradients(ours, wanted)


def test_a_scored_model_still_generates_and_reads_padded_batches():
    """The backend stays set on the model; passes that bring no plan must be what they were."""
    model = tiny_model("llama")
    text = torch.arange(3, 15)[None]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), text], dim=1)
    mask = (torch.arange(16) >= 4).long()[None]
    before = model(input_ids=padded, attention_mask=mask).logits[:, 4:]
    generated = model.generate(text, max_new_tokens=5, do_sample=False)
    Scorer(model)
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:, 4:], before)
    assert model.generate(text, max_new_tokens=5, do_sample=False).tolist() == generated.tolist()


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_lora_on_attention_and_on_the_head_is_scored(target):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=[target], r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    wanted = plain_logps(model, trees())
    wanted_gradients = gradients(model, wanted)
    scorer = Scorer(model)
    scores = scorer.score(batch_of(trees(), scorer.layout))
    assert scorer.layout == "shared_prefix"
    assert (scores.logps - wanted).abs().max() < 1e-4
    assert_equal_gradients(gradients(model, scores.logps), wanted_gradients)


def test_a_head_with_unknown_transforms_is_scored_from_the_models_own_logits(caplog):
    model = tiny_model("llama")
    original = model.forward

    def forward(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = output.logits / 1.7
        return output

    model.forward = forward
    wanted = plain_logps(model, trees())
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        scorer = Scorer(model)
    assert "does more than the chunked LM head supports" in caplog.text
    scores = scorer.score(batch_of(trees(), "padded"))
    assert (scores.logps - wanted).abs().max() < 1e-4


def test_an_encoder_decoder_is_refused():
    import transformers

    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1)
    with pytest.raises(ValueError, match="encoder-decoder"):
        Scorer(transformers.T5ForConditionalGeneration(config))


def test_prompt_tuning_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="virtual tokens"):
        Scorer(peft.get_peft_model(tiny_model("llama"), config))
