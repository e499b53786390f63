"""Answers, counted, rewarded and compared, against what one counts by hand."""

import math

import pytest
import torch

from prefopt.evaluation import distinct_ngrams, sequence_kl
from prefopt.evaluation.answers import AskedPrompt, SamplingPlan, evaluate_answers
from prefopt.evaluation.generation import generate
from prefopt.evaluation.judges import FunctionJudge
from prefopt.evaluation.scoring import PolicyScorer
from tests.models import tiny_model, tiny_tokenizer
from tests.runs import config

ASKED = [AskedPrompt(7 * n, f"prompt {n}", f"prompt {n}", [5 + n, 9, 30 + n]) for n in range(4)]


def words(prompts: list[str], completions: list[str]) -> list[int]:
    """Return the number of words of each completion, and the number of its prompt."""
    return [
        len(text.split()) + int(prompt.split()[1])
        for prompt, text in zip(prompts, completions, strict=True)
    ]


@pytest.fixture
def scorer(tmp_path) -> PolicyScorer:
    policy, start = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    found = PolicyScorer(policy, config(tmp_path), start, tiny_tokenizer())
    found.start = start
    return found


def test_answers_at_temperature_1_are_measured(scorer):
    plan = SamplingPlan((0.0, 1.0), samples_per_prompt=3, max_new_tokens=6, seed=5)
    found = evaluate_answers(scorer, ASKED, plan, FunctionJudge(words, "words"))
    assert len(found.samples) == 4 + 12
    greedy, drawn = found.samples[:4], found.samples[4:]
    assert [one.row for one in greedy] == [0, 7, 14, 21]
    assert [one.row for one in drawn] == [0] * 3 + [7] * 3 + [14] * 3 + [21] * 3
    expected = generate(
        scorer.model,
        scorer.tokenizer,
        [one.prompt_ids for one in ASKED],
        max_new_tokens=6,
        samples=3,
        seed=5,
    )
    assert [one.completion for one in drawn] == [one.text for one in expected]
    assert [one.reward for one in drawn] == words(
        [one.prompt for one in drawn], [one.text for one in expected]
    )
    metrics = found.metrics
    tokens = [one.tokens for one in expected]
    assert metrics["completion_tokens"].value == pytest.approx(sum(tokens) / 12)
    assert metrics["truncated"].value == pytest.approx(
        sum(2 not in one.token_ids for one in expected) / 12
    )
    rewards = [one.reward for one in drawn]
    assert metrics["reward"].value == pytest.approx(sum(rewards) / 12)
    best = [max(rewards[start : start + 3]) for start in range(0, 12, 3)]
    assert metrics["best_of_n_reward"].value == pytest.approx(sum(best) / 4)
    kl = sequence_kl(
        scorer.model,
        scorer.start,
        [one.prompt_ids for one in ASKED for _ in range(3)],
        [one.token_ids for one in expected],
    )
    assert metrics["kl"].value == pytest.approx(kl.mean().item(), rel=1e-4)
    firsts = [one.text for one in expected[::3]]
    assert metrics["distinct_2"] == distinct_ngrams(firsts, 2)
    assert {estimate.size for estimate in metrics.values()} == {4}
    # Three answers to one prompt are one observation: the interval is that of prompts' means.
    means = torch.tensor(rewards, dtype=torch.float64).view(4, 3).mean(1)
    spread = 1.96 * means.std(correction=0).item() / math.sqrt(4)
    assert metrics["reward"].high - means.mean().item() == pytest.approx(spread, rel=0.25)


def test_what_needs_temperature_1_is_said(scorer):
    found = evaluate_answers(scorer, ASKED, SamplingPlan((0.5,), max_new_tokens=3))
    assert found.metrics == {}
    assert len(found.samples) == 4
    assert "need samples at temperature 1" in found.notes[0]
    assert found.samples[0].reward is None


def test_one_prompt_or_no_reference_leaves_a_note(scorer, tmp_path):
    plan = SamplingPlan(max_new_tokens=3)
    assert "at least 2 prompts" in evaluate_answers(scorer, ASKED[:1], plan).notes[0]
    alone = PolicyScorer(tiny_model("llama"), config(tmp_path), None, tiny_tokenizer())
    found = evaluate_answers(alone, ASKED, plan)
    assert "kl" not in found.metrics
    assert found.notes == ["kl: it needs a reference"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperatures": (-1.0,)}, "temperatures must be at least 0"),
        ({"temperatures": (1.0, 1.0)}, "given twice"),
        ({"samples_per_prompt": 0}, "samples_per_prompt must be at least 1"),
        ({"max_prompts": -1}, "max_prompts must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        SamplingPlan(**wrong)
