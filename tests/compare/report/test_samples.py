"""Which samples a page shows, and that what it leaves out is counted."""

from dataclasses import replace

from prefopt.compare import Comparison, MethodResult, Sample
from prefopt.compare.report.samples import LONGEST_ANSWER, MOST_BYTES, shown_samples

METHODS = (MethodResult("ipo", "ipo"), MethodResult("dpo", "dpo"))


def with_samples(*samples: Sample) -> Comparison:
    return Comparison("title", "", "", methods=METHODS, samples=samples)


def test_answers_stand_by_prompt_the_datas_own_first_then_as_the_methods_and_by_temperature():
    shown = shown_samples(
        with_samples(
            Sample("one", "dpo", "a", 1.0),
            Sample("two", "dpo", "b", 1.0),
            Sample("one", "ipo", "c", 1.0),
            Sample("one", "ipo", "d", 0.0),
            Sample("one", "other", "e", 0.0),
            Sample("one", "chosen", "f"),
        )
    )
    assert [prompt.text for prompt in shown.prompts] == ["one", "two"]
    assert [it.completion for it in shown.prompts[0].answers] == ["f", "d", "c", "a", "e"]
    assert shown.methods == ("chosen", "ipo", "dpo", "other")
    assert shown.temperatures == (0.0, 1.0)
    assert shown.left_out == 0


def test_what_a_page_cannot_hold_is_left_out_by_whole_prompts_and_counted():
    text = "<" * LONGEST_ANSWER  # four times as long once escaped
    fitting = MOST_BYTES // (2 * (4 * LONGEST_ANSWER + 400))
    samples = [Sample(f"{it}", name, text) for it in range(50) for name in ("ipo", "dpo")]
    shown = shown_samples(with_samples(*samples))
    assert 0 < fitting - 1 <= len(shown.prompts) <= fitting < 50
    assert {len(prompt.answers) for prompt in shown.prompts} == {2}
    assert shown.left_out == 2 * (50 - len(shown.prompts))


def test_a_very_long_text_is_cut_and_says_so():
    sample = Sample("p" * (LONGEST_ANSWER + 1234), "dpo", "a" * (LONGEST_ANSWER + 5))
    (prompt,) = shown_samples(with_samples(sample)).prompts
    assert prompt.text.endswith("p … [1,234 more characters in results.json]")
    assert prompt.answers[0].completion.endswith("a … [5 more characters in results.json]")
    whole = replace(sample, prompt="p", completion="a" * LONGEST_ANSWER)
    (prompt,) = shown_samples(with_samples(whole)).prompts
    assert prompt.answers == (whole,)
