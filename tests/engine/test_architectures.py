"""On every architecture, scores, gradients and steps equal those of each text computed alone."""

import logging
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from prefopt.engine import Scorer
from tests.engine.trees import assert_equal_gradients, batch_of, gradients, plain_logps, trees
from tests.models import PADDED_ONLY, SHARING, tiny_model

CASES = [
    *((name, layout) for name in SHARING for layout in ("shared_prefix", "padded")),
    *((name, "padded") for name in PADDED_ONLY),
]
on_every_architecture = pytest.mark.parametrize(("name", "layout"), CASES)


class Outcome(NamedTuple):
    """What one way to compute gives: log-probs, gradients, weights after a step."""

    logps: Tensor
    gradients: dict[str, Tensor]
    weights: Tensor


def outcome(model: Any, logps: Tensor) -> Outcome:
    found = gradients(model, logps)
    # Eps above the rounding of gradients that are nearly zero, which Adam would blow up otherwise.
    torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2).step()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return Outcome(logps.detach(), found, weights)


@cache
def alone(name: str) -> Outcome:
    """Each prompt + completion through the plain model: its own forward, attention and logits."""
    model = tiny_model(name)
    return outcome(model, plain_logps(model, trees()))


@cache
def together(name: str, layout: str) -> Outcome:
    model = tiny_model(name)
    scorer = Scorer(model, "auto" if name in SHARING and layout == "shared_prefix" else layout)
    assert scorer.layout == layout
    return outcome(model, scorer.score(batch_of(trees(), layout)).logps)


# Largest differences seen on a CPU: log-probs 8e-6 nats (means 2e-6), gradients 1.5e-6 of their
# norm, weights 4.2e-6 (means 4e-10).


@on_every_architecture
def test_log_probs_equal_those_of_each_text_alone(name, layout):
    difference = together(name, layout).logps - alone(name).logps
    assert difference.abs().max() < 3e-5  # of sums of up to 51 nats
    assert difference.mean().abs() < 6e-6


@on_every_architecture
def test_gradients_of_all_parameters_equal(name, layout):
    assert_equal_gradients(together(name, layout).gradients, alone(name).gradients)


@on_every_architecture
def test_weights_after_an_optimiser_step_equal(name, layout):
    moved = together(name, layout).weights - alone(name).weights
    assert moved.abs().max() < 2e-5  # of steps of 1e-2
    assert moved.mean().abs() < 2e-9


@pytest.mark.parametrize("name", PADDED_ONLY)
def test_models_that_cannot_share_fall_back_to_padded_with_one_message(name, caplog):
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        scorer = Scorer(tiny_model(name))
    messages = [record.message for record in caplog.records if record.name == "prefopt"]
    assert len(messages) == 1
    assert "cannot share prefixes" in messages[0]
    assert scorer.layout == "padded"


@pytest.mark.parametrize("name", PADDED_ONLY)
def test_requiring_shared_prefixes_of_such_a_model_is_an_error(name):
    with pytest.raises(ValueError, match=r'use .*"auto" or "padded"'):
        Scorer(tiny_model(name), "shared_prefix")


# That the comparison above would notice ----------------------------------------------------------


@pytest.mark.parametrize("name", SHARING)
def test_positions_that_do_not_continue_from_the_prompt_show(name):
    batch = batch_of(trees(), "shared_prefix")
    length = batch.input_ids.shape[1]
    batch = replace(batch, position_ids=torch.arange(length)[None])
    wrong = Scorer(tiny_model(name)).score(batch).logps
    assert (wrong - alone(name).logps).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"sliding_window": None}),
        ("starcoder2", {"sliding_window": None}),
        ("gemma2", {"sliding_window": 200}),
        ("gemma3", {"sliding_window": 200}),
        ("cohere2", {"sliding_window": 200}),
        ("gpt_oss", {"sliding_window": 200}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("granite", {"attention_multiplier": 8**-0.5}),
    ],
)
def test_ignoring_a_window_or_a_soft_cap_shows(name, changes):
    wrong = plain_logps(tiny_model(name, **changes), trees())
    assert (wrong - alone(name).logps).abs().max() > 1e-2


def test_ignoring_attention_sinks_shows():
    model = tiny_model("gpt_oss")
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.sinks, -1e4)
    assert (plain_logps(model, trees()) - alone("gpt_oss").logps).abs().max() > 1e-2
