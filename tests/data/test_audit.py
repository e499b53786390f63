"""Each way in which a training text differs from what inference makes is found, and no other."""

from datetime import datetime

import pytest
from datasets import Dataset

from prefopt.data import audit, prepare_dataset
from prefopt.data.audit import TemplateFacts

from .templates import (
    CHATML,
    DEFAULT_SYSTEM,
    DROPS_THINKING,
    HEADERS,
    INST,
    PARTS,
    THINKING,
    TURNS,
    ZEPHYR,
    assistant,
    bytes_tokenizer,
    pair,
    user,
)

HI = pair("Hi", "Hello", "Go away")
IM_END, EOT, EOS = "<|im_end|>", "<|eot|>", "</s>"
LINE = CHATML.replace("<|im_end|>\n", "<|im_end|>")
NO_PROMPT = LINE.split("{% if add")[0]


def found(row, template=None, **options):
    """Return what the report of a row remarks, by what it is."""
    tokenizer = bytes_tokenizer(template, **options)
    report = prepare_dataset(Dataset.from_list([row]), tokenizer).report
    assert all((remark.count, remark.rows) == (1, (0,)) for remark in report.remarks.values())
    return {what: remark.example for what, remark in report.remarks.items()}


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (LINE, IM_END, {}),
        (INST, EOS, {}),
        (CHATML, IM_END, {audit.BEHIND: r"'\n'"}),
        (ZEPHYR, EOS, {audit.BEHIND: r"'\n'"}),
        (TURNS, "<|/turn|>", {audit.BEHIND: r"'\n'"}),
        (LINE, EOS, {audit.NO_END: "it ends with 'Hello<|im_end|>'"}),
        (CHATML, EOS, {audit.NO_END: r"it ends with 'Hello<|im_end|>\n'"}),
        (NO_PROMPT, IM_END, {audit.BEFORE: r"'<|im_start|>assistant'"}),
        (DROPS_THINKING, EOS, {audit.PROMPT: r"'<think>\n', not 'Hello</s>'"}),
        (
            THINKING,
            IM_END,
            {audit.BEHIND: r"'\n'", audit.BEFORE: r"'<think>\n\n</think>'"},
        ),
        (
            DEFAULT_SYSTEM,
            IM_END,
            {audit.BEHIND: r"'\n'", audit.ADDED: r"'<|im_start|>system\nBe a kind helper.'"},
        ),
    ],
)
def test_what_a_template_does_otherwise_at_inference(template, eos, expected):
    assert found(HI, template, eos=eos, bos="<s>") == expected


def test_an_empty_block_in_the_generation_prompt_is_compared_too():
    off = HI | {"chat_template_kwargs": {"enable_thinking": False}}
    assert found(off, THINKING) == {audit.BEHIND: r"'\n'"}
    forgets = THINKING.replace("(loop.last or why)", "why")
    words = r"'<think>\n\n</think>\n\n', not 'Hello<|im_end|>\n'"
    assert found(off, forgets) == {audit.BEHIND: r"'\n'", audit.PROMPT: words}


def test_reasoning_of_an_answer_is_no_text_of_the_template():
    row = pair("2+2?", "<think>\nadd\n</think>\n\n4", [assistant("5", reasoning_content="guess")])
    assert found(row, THINKING) == {audit.BEHIND: r"'\n'"}


def test_reasoning_of_earlier_answers_is_left_out_at_inference_too():
    turns = [user("2+2?"), assistant("<think>\nadd them\n</think>\n\n4"), user("Sure?")]
    assert found(pair(turns, "Yes", "No"), THINKING)[audit.HISTORY] == r"'\nadd them\n'"


def test_the_date_of_today_is_found_where_it_is_printed():
    today = datetime.now().strftime("%d %b %Y")
    headers = found(HI, HEADERS, eos=EOT, bos="<s>")
    assert headers[audit.DATE] == repr(today)
    assert f"Today is {today}" in headers[audit.ADDED]
    fixed = HI | {"chat_template_kwargs": {"date_string": "26 Jul 2024"}}
    assert found(fixed, HEADERS, eos=EOT, bos="<s>") == {}


@pytest.mark.parametrize("answer", ["Hello<|im_end|>", "Hello<|im_end|>\n"])
def test_an_answer_that_ends_itself_ends_twice_by_a_template(answer):
    assert audit.TWO_ENDS in found(pair("Hi", answer, "No"), LINE)
    assert audit.TWO_ENDS not in found(pair("Hi", "<|im_end|> ends a turn", "No"), LINE)


def test_plain_text_tells_what_it_has_already():
    row = {"prompt": "<s>Hi\n", "chosen": "Hello</s>\n", "rejected": "No"}
    told = {audit.BOS: "'<s>'", audit.EOS: r"'Hello</s>\n'"}
    assert found(row, bos="<s>", eos=EOS, adds="<s> $A") == told
    assert found(row | {"prompt": "Hi", "chosen": "Hello"}, bos="<s>", eos=EOS) == {}
    turn = row | {"prompt": "Hi", "chosen": "Hello<|eot|>"}
    told = {audit.NO_END: "it ends with 'Hello<|eot|>'", audit.EOS: "'Hello<|eot|>'"}
    assert found(turn, bos="<s>", eos=EOS) == told


def test_a_merged_token_is_shown(gpt2):
    rows = [{"prompt": "I am the lo", "chosen": "west", "rejected": "udest"}]
    gpt2.chat_template = None
    report = prepare_dataset(Dataset.from_list(rows), gpt2).report
    assert report.remarks[audit.MERGED].example == "' lo' becomes ' lowest'"
    assert list(report.remarks) == [audit.MERGED]


def test_long_examples_are_shortened():
    system = DEFAULT_SYSTEM.replace("kind", "kind " * 50)
    example = found(HI, system)[audit.ADDED]
    assert len(example) < 100
    assert " ... " in example


@pytest.mark.parametrize("template", [LINE, INST, TURNS, ZEPHYR, DROPS_THINKING, THINKING])
@pytest.mark.parametrize("bos", ["<s>", None])
def test_headers_of_turns_are_no_text_that_the_template_adds(template, bos):
    facts = TemplateFacts.of(bytes_tokenizer(template, bos=bos))
    assert (facts.added, facts.dates) == ("", ())
    assert facts.tags


def test_a_template_of_parts_is_tried_with_parts():
    adds = "<|im_start|>system\nBe a kind helper.<|im_end|>\n" + PARTS
    assert found(HI, adds)[audit.ADDED] == r"'<|im_start|>system\nBe a kind helper.'"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "nothing", "{{ messages[0].content }}", None]
)
def test_facts_of_a_template_that_refuses_or_drops_the_trial(template):
    assert TemplateFacts.of(bytes_tokenizer(template)) == TemplateFacts(template or "")


def test_plain_text_beside_a_chat_template_is_told():
    row = {"prompt": "Hi", "chosen": " Hello", "rejected": " No"}
    assert found(row) == {}
    assert found(row, LINE) == {audit.PLAIN: "'<|im_start|>'"}
    assert audit.PLAIN not in found(row | {"prompt": "<|im_start|>user\nHi<|im_end|>"}, LINE)


def test_an_argument_that_the_template_does_not_read_is_told():
    row = HI | {"chat_template_kwargs": {"enable_thinking": False, "tone": "kind"}}
    assert found(row, LINE) == {audit.UNKNOWN: "'enable_thinking'"}
    assert found(row, THINKING)[audit.UNKNOWN] == "'tone'"
