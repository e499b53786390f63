"""Trees of any shape: scores and gradients equal those of every text alone, in both layouts."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from tests.engine.trees import batch_of, gradients, plain_logps
from tests.models import tiny_model

# Four tokens only, so that completions start alike, repeat, and are beginnings of each other.
tokens = st.integers(3, 6)
texts = st.lists(tokens, min_size=1, max_size=6)


@st.composite
def batches(draw: Any) -> list[Example]:
    """Draw one to four examples, some with the same prompt or prompts that begin alike."""
    prompts = draw(st.lists(st.lists(tokens, max_size=6), min_size=1, max_size=3))
    prompts += [prompt[:2] for prompt in prompts]
    examples = []
    for _ in range(draw(st.integers(1, 4))):
        prompt = draw(st.sampled_from(prompts))
        completions = draw(st.lists(texts, min_size=1, max_size=8))
        start = draw(st.sampled_from([[], completions[0]]))  # all continue from the first
        completions = completions[:1] + [(start + text)[:9] for text in completions[1:]]
        arrays = [np.array(text, dtype=np.int64) for text in completions]
        examples.append(Example(np.array(prompt, dtype=np.int64), arrays))
    return examples


@cache
def scorer_of(layout: str) -> Scorer:
    # Two models: the layout is a matter of the model's attention, which a scorer sets.
    return Scorer(tiny_model("llama").double(), layout)


@cache
def plain_model() -> Any:
    return tiny_model("llama").double()


def assert_equal_to_texts_alone(examples: list[Example]) -> None:
    wanted = plain_logps(plain_model(), examples)
    wanted_gradients = gradients(plain_model(), wanted) if wanted.requires_grad else {}
    # Sharing a single token already makes the deepest trees, across examples too.
    deepest = build_layout(examples, "shared_prefix", least_shared=1)
    batches = [(layout, batch_of(examples, layout)) for layout in ("shared_prefix", "padded")]
    for layout, batch in [("shared_prefix", deepest), *batches]:
        scorer = scorer_of(layout)
        scores = scorer.score(batch)
        # Norms compute in float32 in any dtype, so no closer than that.
        torch.testing.assert_close(scores.logps, wanted, rtol=1e-6, atol=1e-6)
        ours = gradients(scorer.model, scores.logps)
        for name, gradient in wanted_gradients.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(batches())
def test_random_trees_equal_texts_alone(examples):
    assert_equal_to_texts_alone(examples)


def example(prompt: list[int], *completions: list[int]) -> Example:
    as_array = [np.array(text, dtype=np.int64) for text in completions]
    return Example(np.array(prompt, dtype=np.int64), as_array)


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param([example([], [3, 4, 5], [3, 4, 6])], id="no prompt"),
        pytest.param([example([], [3], [4, 5])], id="no prompt and one token"),
        pytest.param([example([3, 4], [5], [6])], id="one token each"),
        pytest.param([example([3, 4], [5, 6], [5, 6])], id="identical"),
        pytest.param([example([3, 4], [5], [5])], id="identical and one token"),
        pytest.param([example([3, 4], [5], [5, 6, 3])], id="one begins the other"),
        pytest.param([example([3, 4], [5, 6, 3], [5, 6], [5])], id="each begins the one before"),
        pytest.param([example([3], *([5, i] for i in range(3, 11)))], id="eight completions"),
        pytest.param([example([3, 4], [5, 6]), example([3, 4], [5, 3])], id="same prompt"),
        pytest.param([example([3, 4], [5, 6]), example([3], [4, 5, 6])], id="same text, cut apart"),
        pytest.param([example([3, 4, 5], [6, 6]), example([3, 4], [6, 6])], id="prompts alike"),
        pytest.param([example([3], [4, 5]), example([3], [4, 5])], id="the same example twice"),
    ],
)
def test_a_tree_of_this_shape_equals_texts_alone(examples):
    assert_equal_to_texts_alone(examples)
