"""What probes ask of a model, and how they compare."""

import logging

import pytest
import torch
from torch import nn

from prefopt.engine.probe import (
    causal_lm_of,
    close,
    is_exact,
    probe_inputs,
    quiet_transformers,
    takes_token_types,
)
from tests.models import VOCABULARY, tiny_model


def test_a_plain_model_is_its_own_causal_lm_and_a_peft_model_holds_one():
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    assert causal_lm_of(model) is model
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    assert causal_lm_of(wrapped) is model


def test_models_of_text_alone_take_no_token_types():
    assert not takes_token_types(tiny_model("llama"))


def test_probe_tokens_differ_and_are_in_the_vocabulary():
    inputs = probe_inputs(tiny_model("llama"))
    tokens = inputs["input_ids"][0].tolist()
    assert len(set(tokens)) == len(tokens) == 11
    assert min(tokens) >= 0
    assert max(tokens) < VOCABULARY
    assert inputs["position_ids"].tolist() == [list(range(11))]
    assert inputs["attention_mask"].all()


@pytest.mark.parametrize(
    ("difference", "exact", "expected"),
    [(1e-5, True, True), (1e-4, True, False), (0.01, False, True), (0.05, False, False)],
)
def test_close_allows_the_rounding_of_the_precision(difference, exact, expected):
    numbers = torch.tensor([1.0, -0.5])
    assert close(numbers + difference, numbers, exact) is expected


def test_close_measures_against_the_largest_number_and_fails_on_nan():
    assert close(torch.tensor([1000.01]), torch.tensor([1000.0]), exact=True)
    assert not close(torch.tensor([torch.nan]), torch.tensor([1.0]), exact=False)


def test_half_precision_anywhere_is_not_exact():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert is_exact(model)
    assert is_exact(model.double())
    model[1].bfloat16()
    assert not is_exact(model)


def test_four_bit_layers_are_exact_where_they_compute_in_float32():
    layer = nn.Linear(2, 2).requires_grad_(False)
    layer.weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    layer.compute_dtype = torch.float32
    assert is_exact(layer)
    layer.compute_dtype = torch.bfloat16
    assert not is_exact(layer)


def test_transformers_is_quiet_only_within(caplog, monkeypatch):
    log = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(log, "propagate", True)  # transformers prints itself
    with caplog.at_level(logging.WARNING, log.name):
        with quiet_transformers():
            with quiet_transformers():
                log.warning("inside")
            log.warning("still inside")
            log.error("wrong")
        log.warning("afterwards")
    assert caplog.messages == ["wrong", "afterwards"]
