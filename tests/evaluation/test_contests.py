"""Win rates against the data's answers and the start's, counted by hand."""

import pytest

from prefopt.evaluation import wilson_interval
from prefopt.evaluation.answers import AskedPrompt, SampledAnswer
from prefopt.evaluation.contests import contests, first_answers
from prefopt.evaluation.judges import FunctionJudge

ASKED = [
    AskedPrompt(0, "p0", "p0", [3], "xxx"),
    AskedPrompt(4, "p4", "p4", [4], "x"),
    AskedPrompt(9, "p9", "p9", [5]),  # of a row with a label: it has no chosen answer
]
JUDGE = FunctionJudge(lambda prompts, completions: [len(text) for text in completions], "length")


def sample(row: int, text: str, temperature: float | None) -> SampledAnswer:
    return SampledAnswer(row, f"p{row}", text, temperature, None, len(text), False)


def test_the_first_answer_to_each_prompt_stands_for_it():
    samples = [sample(0, "of the data", None), sample(0, "a", 1.0), sample(0, "b", 1.0)]
    assert first_answers([*samples, sample(0, "c", 0.0)]) == {(0, 1.0): "a", (0, 0.0): "c"}


def test_wins_and_ties_are_counted_at_each_temperature():
    ours = {(0, 0.0): "xxxx", (4, 0.0): "x", (9, 0.0): "xx"}
    ours |= {(0, 1.0): "xx", (4, 1.0): "", (9, 1.0): "x"}
    start = {(row, t): "xx" for row in (0, 4, 9) for t in (0.0, 1.0)}
    found = contests(JUDGE, ASKED, ours, start)
    assert [(one.against, one.temperature) for one in found] == [
        ("chosen", 0.0),
        ("start", 0.0),
        ("chosen", 1.0),
        ("start", 1.0),
    ]
    assert [one.rate for one in found] == [
        wilson_interval(1.5, 2),  # 4 > 3, 1 = 1
        wilson_interval(1.5, 3),  # 4 > 2, 1 < 2, 2 = 2
        wilson_interval(0, 2),  # 2 < 3, 0 < 1
        wilson_interval(0.5, 3),  # 2 = 2, 0 < 2, 1 < 2
    ]
    assert {one.position_bias for one in found} == {None}
    assert {one.without_verdict for one in found} == {0}


def test_a_judge_of_pairs_is_asked_in_both_orders():
    class First:
        name = "first"

        def preferences(self, prompts, first, second):
            return [None if prompt == "p4" else 1.0 for prompt in prompts]

    (found,) = contests(First(), ASKED, {(0, 1.0): "a", (4, 1.0): "b", (9, 1.0): "c"})
    assert found.rate == wilson_interval(0.5, 1)  # the first place won in both orders: a tie
    assert found.without_verdict == 1
    assert found.position_bias.value == 1.0


def test_a_start_without_an_answer_is_an_error():
    with pytest.raises(ValueError, match="row 4 at temperature 1"):
        contests(JUDGE, ASKED[:2], {(0, 1.0): "a", (4, 1.0): "b"}, {(0, 1.0): "c"})
