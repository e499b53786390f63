"""Hybrids in the shared-prefix row: log-probs and gradients are those of each text alone."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.engine.recurrent import mixers
from prefopt.engine.recurrent.states import MixerStates
from tests.engine.test_continuation import others
from tests.engine.trees import gradients, plain_logps, trees
from tests.models import RECURRENT, VOCABULARY, tiny_model

LAYOUTS = ("shared_prefix", "padded")


class Outcome(NamedTuple):
    logps: Tensor
    gradients: dict[str, Tensor]


def eight_completions(seed: int = 0) -> list[Example]:
    """Return two prompts of different lengths with eight completions each, some starting alike."""
    generator = np.random.default_rng(seed)

    def draw(length: int) -> Any:
        return generator.integers(3, VOCABULARY, length)

    start = draw(12)
    alike = [np.concatenate([start[:length], draw(3)]) for length in (12, 12, 9)]
    alike.append(np.concatenate([alike[0][:14], draw(2)]))  # below a branch of a branch
    return [
        Example(draw(37), [draw(length) for length in (1, 2, 3, 5, 8, 13, 21, 34)]),
        Example(draw(14), [*alike, start[:9], *(draw(length) for length in (1, 4, 20))]),
    ]


EXAMPLES = {"eight completions": eight_completions, "every shape": trees}
CASES = [
    (name, layout, rows)
    for name in RECURRENT
    for layout, rows in [
        ("shared_prefix", "eight completions"),
        ("shared_prefix", "every shape"),
        ("padded", "eight completions"),
    ]
]
on_every_table = pytest.mark.parametrize(("name", "layout", "rows"), CASES)


@cache
def scored_by(name: str, layout: str = "auto") -> tuple[Any, Scorer]:
    """Return a model and its scorer; nothing here changes either."""
    model = tiny_model(name)
    return model, Scorer(model, layout)


@cache
def alone(name: str, rows: str) -> Outcome:
    """Each prompt + completion through the plain model: its own forward and logits."""
    model = tiny_model(name)
    logps = plain_logps(model, EXAMPLES[rows]())
    return Outcome(logps.detach(), gradients(model, logps))


@cache
def together(name: str, layout: Any, rows: str) -> Outcome:
    model, scorer = scored_by(name, "auto" if layout == "shared_prefix" else layout)
    assert scorer.layout == layout  # none of them falls back to padded rows
    logps = scorer.score(build_layout(EXAMPLES[rows](), layout)).logps
    return Outcome(logps.detach(), gradients(model, logps))


# Largest differences seen on a CPU: 1.5e-5 nats of sums of up to 171, gradients 7e-6 of their norm.


@on_every_table
def test_log_probs_equal_those_of_each_text_alone(name, layout, rows):
    difference = together(name, layout, rows).logps - alone(name, rows).logps
    assert difference.abs().max() < 1e-4
    assert difference.mean().abs() < 2e-5


@on_every_table
def test_gradients_of_all_parameters_equal(name, layout, rows):
    ours, theirs = together(name, layout, rows).gradients, alone(name, rows).gradients
    assert ours.keys() == theirs.keys()
    total = torch.sqrt(sum(gradient.square().sum() for gradient in theirs.values()))
    for parameter, gradient in theirs.items():
        difference = (ours[parameter] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() or difference <= 1e-6 * total, parameter


@pytest.mark.parametrize("name", RECURRENT)
def test_a_text_does_not_change_with_another_of_its_row(name):
    examples = eight_completions()
    model, scorer = scored_by(name)
    for changed in (0, 1):
        other = list(examples)
        other[changed] = Example(
            VOCABULARY + 2 - examples[changed].prompt_ids,  # as long, of other tokens
            [VOCABULARY + 2 - ids for ids in examples[changed].completion_ids],
        )
        kept = slice(8, None) if changed == 0 else slice(8)
        with torch.no_grad():
            before, after = (scorer.score(build_layout(it)).logps for it in (examples, other))
        if getattr(model.config, "num_experts_per_tok", None):  # experts round tokens together
            torch.testing.assert_close(after[kept], before[kept], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(after[kept], before[kept])
        rest = slice(8) if changed == 0 else slice(8, None)
        assert (after[rest] - before[rest]).abs().max() > 1


@pytest.mark.parametrize("name", RECURRENT)
def test_a_row_that_continues_another_starts_from_its_states(name):
    examples = trees()
    more = others(examples)
    with torch.no_grad():
        wanted = plain_logps(tiny_model(name), more)
    batch = build_layout(examples, continued=more, least_shared=3)
    found = scored_by(name)[1].score(batch).continuation.logps
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_model_that_reads_images_too_shares_prefixes_of_texts():
    with torch.no_grad():
        wanted = plain_logps(tiny_model("qwen3_5_vision"), trees())
        found = scored_by("qwen3_5_vision", "shared_prefix")[1].score(build_layout(trees())).logps
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


# That the comparisons above would notice ---------------------------------------------------------


@pytest.mark.parametrize("name", RECURRENT)
def test_branches_that_start_from_nothing_show(name, monkeypatch):
    _, scorer = scored_by(name)
    forget = lambda self, rows: MixerStates(  # noqa: E731
        self.conv[rows] * 0, None if self.recurrent is None else self.recurrent[rows] * 0
    )
    monkeypatch.setattr(mixers.MixerStates, "of", forget)
    wrong = scorer.score(build_layout(eight_completions())).logps
    assert (wrong - alone(name, "eight completions").logps).abs().max() > 1e-2


@pytest.mark.parametrize("name", RECURRENT)
def test_gradients_that_do_not_flow_through_states_show(name, monkeypatch):
    model, scorer = scored_by(name)
    own = MixerStates.of
    monkeypatch.setattr(MixerStates, "of", lambda self, rows: own(self, rows).detached())
    logps = scorer.score(build_layout(eight_completions())).logps
    theirs = alone(name, "eight completions")
    assert (logps.detach() - theirs.logps).abs().max() < 1e-4
    ours = gradients(model, logps)
    relative = [
        float((ours[it] - gradient).norm() / gradient.norm())
        for it, gradient in theirs.gradients.items()
    ]
    assert max(relative) > 1e-3
