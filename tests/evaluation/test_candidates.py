"""Scores of rows in every layout, in the order of the rows, and what is made of them."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from prefopt.evaluation.candidates import (
    Candidates,
    RowScores,
    ScoringLayout,
    accepted_by_rejection,
    group_by_prompt,
    is_benchmark,
    score_rows,
)
from prefopt.evaluation.scoring import PolicyScorer
from prefopt.objective import parse_objective
from prefopt.objective.options import LossOptions
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config

PROMPT = "w3 w4 w5 w6"
ANSWERS = [" w7 w8", " w9", " w10 w11 w12 w13"]


@pytest.fixture
def scorer(tmp_path) -> PolicyScorer:
    policy, start = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    found = PolicyScorer(policy, config(tmp_path), start, tiny_tokenizer())
    found.start = start
    return found


def plain_logps(model, prompt: str, answer: str) -> float:
    """Return the log-prob of an answer and its EOS, by transformers alone."""
    ids = [int(word[1:]) for word in prompt.split()]
    said = [int(word[1:]) for word in answer.split()] + [2]
    with torch.no_grad():
        table = model(torch.tensor([ids + said])).logits[0].double().log_softmax(-1)
    return sum(table[len(ids) - 1 + place, token].item() for place, token in enumerate(said))


def log_ratios(scorer, prompt: str, answers: list[str]) -> list[float]:
    return [
        plain_logps(scorer.model, prompt, text) - plain_logps(scorer.start, prompt, text)
        for text in answers
    ]


LAYOUTS = [
    {"prompt": PROMPT, "chosen": ANSWERS[0], "rejected": ANSWERS[1]},
    {"prompt": PROMPT, "completion": ANSWERS[2], "label": False},
    {"prompt": PROMPT, "completion": ANSWERS[2]},
    {"prompt": PROMPT, "completions": ANSWERS},
    {"prompt": PROMPT, "completions": ANSWERS[:1]},
    {"prompt": PROMPT, "completions": ANSWERS, "ranks": [2, 0, 1]},  # best first as trained on
    {"prompt": PROMPT, "completions": ANSWERS, "ranks": [0, 0, 0]},  # nothing to learn from
    {"prompt": PROMPT, "completions": ANSWERS, "scores": [0.5, None, 2.0]},
    {"prompt": PROMPT, "responses": ANSWERS},
    {"prompt": PROMPT, "completions": [ANSWERS[0], ANSWERS[0]]},
]


@pytest.mark.parametrize("row", LAYOUTS, ids=lambda row: "-".join(row))
def test_rows_of_every_layout_are_scored_in_their_order(scorer, row):
    (found,) = score_rows(scorer, Dataset.from_list([row]))
    columns = ("chosen", "rejected", "completion")
    answers = row.get("completions") or row.get("responses")
    answers = answers or [row[name] for name in columns if name in row]
    assert found.example.completions == answers
    assert found.rewards == pytest.approx(log_ratios(scorer, PROMPT, answers), abs=1e-3)
    assert found.logps == pytest.approx(
        [plain_logps(scorer.model, PROMPT, text) for text in answers], abs=1e-3
    )
    assert found.ref_logps == pytest.approx(
        [plain_logps(scorer.start, PROMPT, text) for text in answers], abs=1e-3
    )
    assert found.tokens == [len(text.split()) + 1 for text in answers]


def test_rows_of_several_layouts_stay_in_their_places(scorer, tmp_path):
    long = {"prompt": " ".join(["w3"] * 30), "chosen": " w7", "rejected": " w8"}
    columns = list(dict.fromkeys(name for row in LAYOUTS[:4] for name in row))
    rows = [{name: row.get(name) for name in columns} for row in (*LAYOUTS[:4], long)]
    short = PolicyScorer(
        scorer.model, config(tmp_path, max_length=20), scorer.start, tiny_tokenizer()
    )
    found = score_rows(short, Dataset.from_list([rows[4], *rows[:4]]))
    assert found[0] is None  # its prompt leaves no room
    alone = [score_rows(scorer, Dataset.from_list([row]))[0] for row in LAYOUTS[:4]]
    for one, other in zip(found[1:], alone, strict=True):
        assert one.rewards == pytest.approx(other.rewards, abs=1e-4)


def test_token_ids_are_scored_in_the_order_of_the_row(scorer):
    ids = [[7, 8, 2], [9, 2], [10, 11, 12, 13, 2]]
    rows = Dataset.from_list(
        [{"prompt_ids": [3, 4, 5, 6], "completion_ids": ids, "ranks": [2, 1, 0]}]
    )
    (found,) = score_rows(scorer, rows)
    assert found.rewards == pytest.approx(log_ratios(scorer, PROMPT, ANSWERS), abs=1e-3)


def test_the_reward_is_that_of_the_loss_and_in_a_pair_that_of_the_pair(scorer):
    rows = Dataset.from_list([LAYOUTS[0]])
    simpo = parse_objective("simpo", options={"beta": 3.0})
    (found,) = score_rows(scorer, rows, simpo)
    means = [
        plain_logps(scorer.model, PROMPT, text) / (len(text.split()) + 1) for text in ANSWERS[:2]
    ]
    assert found.rewards == pytest.approx([3 * mean for mean in means], abs=1e-3)
    # LD-DPO without a tail: of the longer one only as many tokens count as the shorter one has.
    head = parse_objective("dpo", loss_options=LossOptions(ld_alpha=0.0), options={"beta": 1.0})
    (found,) = score_rows(scorer, rows, head)
    whole = log_ratios(scorer, PROMPT, ANSWERS[:2])
    assert found.rewards[1] == pytest.approx(whole[1], abs=1e-3)
    assert abs(found.rewards[0] - whole[0]) > 1e-2


def test_without_a_reference_the_reward_is_the_log_prob(tmp_path):
    alone = PolicyScorer(tiny_model("llama", seed=1), config(tmp_path), None, tiny_tokenizer())
    (found,) = score_rows(alone, Dataset.from_list([LAYOUTS[3]]))
    assert found.rewards == found.logps
    assert found.ref_logps is None
    with pytest.raises(ValueError, match="need the log-probs of the reference"):
        score_rows(alone, Dataset.from_list([LAYOUTS[3]]), parse_objective("dpo"))


def test_answers_that_repeat_the_prompt_stay_whole_where_that_is_asked(scorer):
    # As in RewardBench: what is asked for may be to say the prompt again.
    row = {"prompt": f"{PROMPT} ", "chosen": f"{PROMPT} w7 w8", "rejected": f"{PROMPT} w9"}
    rows = Dataset.from_list([row])
    (as_given,) = score_rows(scorer, rows, layout=ScoringLayout(verbatim=True))
    answers = [row["chosen"], row["rejected"]]
    assert as_given.rewards == pytest.approx(log_ratios(scorer, PROMPT, answers), abs=1e-3)
    assert as_given.tokens == [7, 6]
    assert as_given.example.completions == [row["chosen"], row["rejected"]]
    # As training reads it, a repeated prompt is no answer; in the middle it is left in both.
    (as_trained,) = score_rows(scorer, rows)
    assert as_trained.tokens == [3, 2]
    inside = {"prompt": PROMPT, "chosen": f" w9 {PROMPT} w7", "rejected": f" w9 {PROMPT}"}
    for layout in (ScoringLayout(), ScoringLayout(verbatim=True)):
        (found,) = score_rows(scorer, Dataset.from_list([inside]), layout=layout)
        answers = [inside["chosen"], inside["rejected"]]
        assert found.rewards == pytest.approx(log_ratios(scorer, PROMPT, answers), abs=1e-3)


def test_verbatim_rows_of_every_kind_and_of_messages(scorer):
    texts = [LAYOUTS[0], LAYOUTS[2], LAYOUTS[3]]
    columns = list(dict.fromkeys(name for row in texts for name in row))
    rows = Dataset.from_list([{name: row.get(name) for name in columns} for row in texts])
    found = score_rows(scorer, rows, layout=ScoringLayout(verbatim=True))
    for one, other in zip(found, score_rows(scorer, rows), strict=True):
        assert one.rewards == pytest.approx(other.rewards, abs=1e-4)
        assert one.example.completions == other.example.completions


def test_text_becomes_a_question_and_answers_by_the_chat_template(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w90' if m['role'] == 'user' else 'w91' }} {{ m['content'] }} "
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}w91 {% endif %}"
    )
    model = tiny_model("llama")
    scorer = PolicyScorer(model, config(tmp_path), None, tokenizer)
    rows = Dataset.from_list(
        [
            {"prompt": PROMPT, "chosen": f"{PROMPT} w7", "rejected": "w8"},
            {"prompt": PROMPT, "chosen": "w7", "rejected": "w8"},
        ]
    )
    found = score_rows(scorer, rows, layout=ScoringLayout(chat=True, verbatim=True))
    asked = f"w90 {PROMPT} w91"
    for row, scores in zip(rows, found, strict=True):
        expected = [plain_logps(model, asked, row[name]) for name in ("chosen", "rejected")]
        assert scores.logps == pytest.approx(expected, abs=1e-3)
    lists = Dataset.from_list([{"prompt": PROMPT, "completions": ["w7", "w8"]}])
    (scores,) = score_rows(scorer, lists, layout=ScoringLayout(chat=True))
    assert scores.logps == pytest.approx(found[1].logps, abs=1e-4)
    assert scores.example.completions[1] == [{"role": "assistant", "content": "w8"}]


def test_the_layout_of_rewardbench_is_known():
    assert is_benchmark(["id", "prompt", "chosen", "chosen_model", "rejected", "subset"])
    assert not is_benchmark(tiny_rows(1).column_names)


# What is made of scores ---------------------------------------------------------------------------


def scored(prompt: str, completions: list[str], rewards: list[float]) -> RowScores:
    from prefopt.data import PreferenceExample

    example = PreferenceExample("ranked", "text", prompt, completions)
    return RowScores(example, rewards, rewards, None, [1] * len(rewards))


def test_completions_of_one_prompt_come_together_each_once():
    groups = group_by_prompt(
        [
            scored("a", ["x", "y"], [1.0, 3.0]),
            None,
            scored("b", ["z"], [0.0]),
            scored("a", ["y", "w"], [3.0, -2.0]),
        ]
    )
    assert groups == [
        Candidates("a", ["x", "y", "w"], [1.0, 3.0, -2.0]),
        Candidates("b", ["z"], [0.0]),
    ]
    assert (groups[0].best, groups[0].worst) == (1, 2)


def test_rejection_accepts_as_often_as_its_formula_says():
    rewards, beta = [0.0, 1.0, 3.0], 2.0
    # One round for one of three: the first is drawn first, and so on, until one is accepted.
    chances = [math.exp((reward - 3.0) / beta) for reward in rewards]
    expected, left = [], 1.0
    for chance in chances:
        expected.append(left * chance)
        left *= 1 - chance
    assert left == pytest.approx(0.0)  # the highest is always accepted
    generator = np.random.default_rng(0)
    picks = [accepted_by_rejection(rewards, 1, beta, generator)[0] for _ in range(20_000)]
    shares = [picks.count(place) / 20_000 for place in range(3)]
    assert shares == pytest.approx(expected, abs=0.012)


def test_rejection_takes_each_candidate_once_and_all_if_there_are_no_more():
    generator = np.random.default_rng(0)
    assert sorted(accepted_by_rejection([0.0, 5.0, 1.0], 9, 0.1, generator)) == [0, 1, 2]
    assert accepted_by_rejection([0.0, 5.0, 1.0], 2, 1e-9, generator) == [1, 2]  # best of N
    for wrong in ((1, 0.0), (0, 1.0), (1, math.nan)):
        with pytest.raises(ValueError, match="greater than 0"):
            accepted_by_rejection([0.0], *wrong, generator)
