"""Judges are asked in both orders; ties, places and missing verdicts are counted."""

import pytest

from prefopt.evaluation.judges import RememberingJudge, judged

PROMPTS = ["p1", "p2", "p3", "p4"]
OURS = ["good one", "bad", "same", "good"]
OTHERS = ["bad", "good too", "same", "bad"]


class Quality:
    """Prefers the answer that has the word good in it, wherever it stands."""

    name = "quality"

    def preferences(self, prompts, first, second):
        self.asked = list(zip(prompts, first, second, strict=True))
        good = [("good" in a, "good" in b) for a, b in zip(first, second, strict=True)]
        return [0.5 if a == b else float(a) for a, b in good]


class First(Quality):
    """Prefers what stands first, with all pairs but the last, which it does not understand."""

    name = "first"

    def preferences(self, prompts, first, second):
        return [None if prompt == "p4" else 1.0 for prompt in prompts]


class Length:
    name = "length"

    def scores(self, prompts, completions):
        return [float(len(text)) for text in completions]


def test_a_fair_judge_says_the_same_in_both_orders():
    judge = Quality()
    found = judged(judge, PROMPTS, OURS, OTHERS)
    assert found.preferences == (1.0, 0.0, 0.5, 1.0)
    assert judge.asked[:4] == list(zip(PROMPTS, OURS, OTHERS, strict=True))
    assert judge.asked[4:] == list(zip(PROMPTS, OTHERS, OURS, strict=True))
    assert (found.without_verdict, found.favours_first) == (0, 0.0)
    assert found.position_bias.value == 0.0
    assert found.position_bias.size == 4


def test_a_judge_that_looks_at_places_prefers_nobody_and_that_is_seen():
    found = judged(First(), PROMPTS, OURS, OTHERS)
    assert found.preferences == (0.5, 0.5, 0.5, None)
    assert found.without_verdict == 1
    assert (found.position_bias.value, found.position_bias.size) == (1.0, 3)
    assert found.favours_first == 1.0


def test_one_missing_order_is_no_verdict():
    class Once(Quality):
        def preferences(self, prompts, first, second):
            return [1.0, None, 0.0, 0.5, 0.0, 1.0, 0.5, 0.5]

    found = judged(Once(), PROMPTS, OURS, OTHERS)
    # 1 then 0 is a win; 0 then 0.5 three quarters lost, so a quarter won; two ties.
    assert found.preferences == (1.0, None, 0.25, 0.5)
    assert found.position_bias.value == 0.0
    # First places won by +1 -1, -1 0, 0 0 of the pairs that count.
    assert found.favours_first == pytest.approx(-1 / 6)


def test_scores_are_compared():
    found = judged(Length(), PROMPTS, OURS, OTHERS)
    assert found.preferences == (1.0, 0.0, 0.5, 1.0)
    assert found.scores == (8.0, 3.0, 4.0, 4.0)
    assert found.other_scores == (3.0, 8.0, 4.0, 3.0)
    assert found.position_bias is None


def test_an_answer_is_scored_once():
    class Counting(Length):
        asked = 0

        def scores(self, prompts, completions):
            self.asked += len(prompts)
            return super().scores(prompts, completions)

    inner = Counting()
    judge = RememberingJudge(inner)
    assert judge.name == "length"
    assert judge.scores(["p", "p", "q"], ["a", "a", "a"]) == [1.0, 1.0, 1.0]
    assert inner.asked == 2
    asked = [{"role": "user", "content": "p"}]
    assert judge.scores(["p", "q", asked], ["a", "bb", "a"]) == [1.0, 2.0, 1.0]
    assert inner.asked == 4
    assert judged(judge, ["p"], ["a"], ["bb"]).preferences == (0.0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 verdicts for 8"),
        ([2.0] * 8, "a verdict is 1"),
        ([float("nan")] * 8, "a verdict is 1"),
        ([None] * 8, "gave no verdict on any of 4"),
    ],
)
def test_what_is_no_verdict_is_an_error(values, message):
    class Wrong(Quality):
        def preferences(self, prompts, first, second):
            return values

    with pytest.raises(ValueError, match=message):
        judged(Wrong(), PROMPTS, OURS, OTHERS)


def test_scores_must_be_as_many_as_answers():
    class Short(Length):
        def scores(self, prompts, completions):
            return [1.0] * 7

    with pytest.raises(ValueError, match="returned 7 scores for 8"):
        judged(Short(), PROMPTS, OURS, OTHERS)
    with pytest.raises(ValueError, match="as many prompts as answers"):
        judged(Length(), PROMPTS, OURS, OTHERS[:3])
    with pytest.raises(ValueError, match="at least one"):
        judged(Length(), [], [], [])
