"""A row that continues another scores its completions as a row of their own would."""

import numpy as np
import pytest
import torch

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from tests.engine.trees import gradients, plain_logps, trees
from tests.models import SHARING, VOCABULARY, tiny_model


def others(examples, seed=1):
    """Return other completions of the same prompts, some of which start like their own."""
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(3, VOCABULARY, length) for length in (6, 1, 9)]
    return [
        Example(
            example.prompt_ids,
            [*drawn[: 1 + number % 3], np.concatenate([example.completion_ids[0], drawn[0]])],
        )
        for number, example in enumerate(examples)
    ]


@pytest.mark.parametrize("name", SHARING)
def test_log_probs_equal_those_of_every_text_alone(name):
    examples = trees()
    more = others(examples)
    with torch.no_grad():
        wanted = plain_logps(tiny_model(name), more)
    model = tiny_model(name)
    scores = Scorer(model, "shared_prefix").score(
        build_layout(examples, continued=more, least_shared=3)
    )
    torch.testing.assert_close(scores.continuation.logps, wanted, rtol=2e-5, atol=2e-4)
    assert not scores.continuation.logps.requires_grad


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_row_itself_is_scored_and_trained_as_without(checkpointing):
    examples = trees()
    both = build_layout(examples, continued=others(examples))
    model = tiny_model("llama").train()
    scorer = Scorer(model)
    alone = scorer.score(build_layout(examples))
    wanted = gradients(model, alone.logps)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    scores = scorer.score(both)
    torch.testing.assert_close(scores.logps, alone.logps, rtol=1e-5, atol=1e-5)
    got = gradients(model, scores.logps)
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_texts_without_a_prompt_continue_nothing():
    empty = np.zeros(0, dtype=np.int64)
    first = [Example(empty, [np.array([5])])]
    more = [Example(empty, [np.array([7, 8, 9]), np.array([6])])]
    scorer = Scorer(tiny_model("llama"))
    scores = scorer.score(build_layout(first, continued=more))
    wanted = scorer.score(build_layout(more))
    assert scores.lengths.tolist() == [0]
    torch.testing.assert_close(scores.continuation.logps, wanted.logps)
