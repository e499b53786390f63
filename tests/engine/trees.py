"""Examples of every shape, and what the model itself makes of each of their texts alone."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.engine import build_layout
from prefopt.engine.layout import Example, Layout
from prefopt.engine.memory.recompute import RecomputingLayers
from tests.models import VOCABULARY


def trees(seed: int = 0) -> list[Example]:
    """Return examples: deep sharing, identical and one-token completions, one to four of them."""
    generator = np.random.default_rng(seed)

    def draw(length: int) -> Any:
        return generator.integers(3, VOCABULARY, length)

    start = draw(9)
    return [
        Example(draw(12), [draw(7), draw(4)]),
        Example(draw(20), [start, np.concatenate([start[:4], draw(3)])]),
        Example(draw(5), [start, start]),
        Example(draw(3), [start[:5], start]),
        Example(draw(1), [draw(1), draw(2), draw(8), draw(8)]),
        Example(draw(6), [draw(5)]),
    ]


def plain_logps(model: Any, examples: list[Example]) -> Tensor:
    """Sum log-probs of each completion from the model's own forward, one text at a time; (N,)."""
    scores = []
    for example in examples:
        for completion in example.completion_ids:
            text = torch.tensor(np.concatenate([example.prompt_ids, completion]))[None]
            logps = model(input_ids=text).logits[0, :-1].log_softmax(-1)
            of_tokens = logps.gather(-1, text[0, 1:, None])[:, 0]
            # Nothing predicts the first token of a text without a prompt.
            scores.append(of_tokens[max(len(example.prompt_ids) - 1, 0) :].sum())
    return torch.stack(scores)


def batch_of(examples: list[Example], layout: Any) -> Layout:
    """Return a batch for ``Scorer.score``."""
    return build_layout(examples, layout)


def without_recomputation(monkeypatch: Any) -> None:
    """Leave norms and MLPs their own forward passes, from now on."""
    monkeypatch.setattr(RecomputingLayers, "active", lambda self: nullcontext())


def gradients(model: Any, scores: Tensor) -> dict[str, Tensor]:
    """Return the gradients of all parameters of a loss that weighs every completion differently."""
    model.zero_grad()
    (scores * torch.linspace(-1, 2, len(scores))).sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Fail where the gradient of a parameter differs by more than rounding."""
    assert ours.keys() == theirs.keys()
    total = torch.sqrt(sum(gradient.square().sum() for gradient in theirs.values()))
    for name, gradient in theirs.items():
        difference = (ours[name] - gradient).norm()
        # A gradient that is zero but for rounding (a key's bias) is measured against all of them.
        assert difference <= 1e-5 * gradient.norm() or difference <= 1e-6 * total, name
