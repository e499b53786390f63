"""Head, layout and backend of a model are what the probes found right, each with its reason."""

from contextlib import nullcontext

import pytest

from prefopt.engine import attention
from prefopt.engine.capability import (
    Capability,
    probe_capability,
    probe_head,
    probe_sharing,
    probed_backend,
)
from prefopt.engine.forward import Forward
from tests.models import tiny_model


def forward_of(name, **options):
    return Forward(tiny_model(name, **options))


def shifted(*args):
    return attention.attend_by_segments(*args) * 1.3


def test_a_head_that_gives_the_models_logits_stays():
    forward = forward_of("gemma2")  # soft-capped
    head = forward.head
    probe_head(forward)
    assert forward.head is head


def test_a_head_that_does_not_is_dropped():
    forward = forward_of("llama")
    forward.head = type(forward.head)(forward.head.module, scale=1.7)
    probe_head(forward)
    assert forward.head is None
    assert probe_sharing(forward) == "its head needs the model's own forward"


def test_a_model_that_shares_keeps_our_attention_and_another_gets_its_own_back():
    llama, mamba = forward_of("llama"), forward_of("falcon_mamba")
    before = mamba.causal_lm.config._attn_implementation
    assert probe_sharing(llama) is None
    assert llama.causal_lm.config._attn_implementation == attention.NAME
    assert isinstance(probe_sharing(mamba), str)
    assert mamba.causal_lm.config._attn_implementation == before


def test_attention_that_gives_other_numbers_is_found():
    forward = forward_of("llama")
    forward.attend = shifted
    problem = probe_sharing(forward)
    assert "log-probs of a probe differ by" in problem


def test_layers_of_a_type_that_segments_cannot_express_are_named():
    forward = forward_of("llama")
    forward.causal_lm.config.layer_types = ["full_attention", "chunked_attention"]
    assert probe_sharing(forward) == "it has layers of type chunked_attention"


def test_a_window_that_the_attention_layers_do_not_pass_is_a_problem():
    forward = forward_of("llama")
    forward.causal_lm.config.sliding_window = 4
    assert probe_sharing(forward) == "its attention hides its sliding window"
    forward.causal_lm.config.use_sliding_window = False
    assert probe_sharing(forward) is None


def test_padded_rows_that_are_asked_for_need_no_probe_of_sharing():
    forward = forward_of("llama")
    before = forward.causal_lm.config._attn_implementation
    found = probe_capability(forward, "padded", "auto", nullcontext)
    assert found == Capability("padded", "asked for", None)
    assert forward.causal_lm.config._attn_implementation == before


def test_a_chosen_backend_attends_from_then_on(monkeypatch):
    forward = forward_of("llama")
    backend = attention.Backend("flex", lambda *args: attention.attend_by_segments(*args), "fast")
    monkeypatch.setattr(attention, "choose_backend", lambda request, **facts: backend)
    found = probe_capability(forward, "auto", "auto", nullcontext)
    assert found.layout == "shared_prefix"
    assert found.backend is backend
    assert forward.attend is backend.attend


def test_a_backend_found_wrong_is_replaced_or_an_error_where_it_is_required(monkeypatch):
    forward = forward_of("llama")
    assert probe_sharing(forward) is None
    backend = attention.Backend("flex", shifted, "fast")
    monkeypatch.setattr(attention, "choose_backend", lambda request, **facts: backend)
    found = probed_backend(forward, "auto", nullcontext)
    assert found.name == "segments"
    assert found.reason.startswith("not flex: its attention differs by")
    assert forward.attend is attention.attend_by_segments
    with pytest.raises(ValueError, match="attn_backend='flex' was asked for, but its attention"):
        probed_backend(forward, "flex", nullcontext)
