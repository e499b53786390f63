"""Messages are rendered in the form of content that the template takes."""

import pytest

from prefopt.data import DataError, read_example
from prefopt.data.template import render_messages

from .templates import (
    CHATML,
    DROPS_THINKING,
    PARTS,
    THINKING,
    TURNS,
    ZEPHYR,
    assistant,
    bytes_tokenizer,
    pair,
    user,
)

JOINED = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
CONTAINS = (
    "{% for m in messages %}{% if 'x' in m.content %}x{% endif %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% endfor %}"
)
PRINTS_JSON = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | tojson }}{% endfor %}"
)
EITHER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)
BY_ROLE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{{ '' + m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endif %}{% endfor %}"
)


def render(template, row, **options):
    return render_messages(read_example(row, 3), 3, bytes_tokenizer(template, **options))


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def in_parts(row):
    """Return the row with each content as parts, one a line."""
    return {
        column: [{**turn, "content": parts(*turn["content"].split("\n"))} for turn in turns]
        for column, turns in row.items()
    }


ROW = pair("How are you?", "Fine,\nthanks.", "No.")


@pytest.mark.parametrize("template", [CHATML, JOINED, CONTAINS, ZEPHYR, TURNS, THINKING, PARTS])
def test_text_and_parts_come_out_alike(template):
    text = render(template, ROW, eos="</s>", bos="<s>")
    assert text.lost is None
    assert "How are you?" in text.prompt
    assert "'type'" not in text.prompt
    assert text.texts[0].count("thanks.") == 1
    one_part = [{**turn, "content": parts(turn["content"])} for turn in ROW["chosen"]]
    row = in_parts(ROW) | {"chosen": one_part}
    assert render(template, row, eos="</s>", bos="<s>") == text


def test_parts_are_joined_by_line_breaks_where_the_template_takes_text():
    assert render(CHATML, in_parts(ROW)).texts[0].endswith("\nFine,\nthanks.<|im_end|>\n")


def test_content_stays_as_it_is_where_the_template_takes_both():
    assert render(EITHER, ROW).texts[0].endswith("assistant\nFine,\nthanks.")
    assert render(EITHER, in_parts(ROW)).texts[0].endswith("assistant\n[Fine,][thanks.]")
    assert render(PRINTS_JSON, ROW).texts[1].endswith('"No."')
    assert render(PRINTS_JSON, in_parts(ROW)).texts[1].endswith('assistant\n"No."')


@pytest.mark.parametrize("row", [ROW, in_parts(ROW), ROW | {"prompt": in_parts(ROW)["prompt"]}])
def test_a_template_may_take_parts_of_some_roles_only(row):
    text = "<|im_start|>user\nHow are you?<|im_start|>assistant\nNo."
    assert render(BY_ROLE, row).texts[1] == text
    other = BY_ROLE.replace("== 'assistant'", "!= 'assistant'")
    assert render(other, row).texts[1] == text


@pytest.mark.parametrize("row", [ROW, in_parts(ROW)])
def test_content_that_the_template_takes_in_no_form_is_lost(row):
    neither = "{% for m in messages %}{{ m.role }}{{ m.content.body }}{% endfor %}"
    assert "leaves out the text of an answer" in render(neither, row).lost
    raising = JOINED.replace("m.content", "m.content['body']")
    with pytest.raises(DataError, match=r"row 3: the chat template refuses the messages: .*body"):
        render(raising, row)


def test_an_answer_without_text_is_tried_as_an_empty_one():
    call = [{"function": {"name": "look", "arguments": {}}}]
    row = pair("Hi", [{"role": "assistant", "content": None, "tool_calls": call}], "No")
    assert "a tool call of an answer" in render(JOINED, row).lost
    prints = JOINED.replace("m.content", "m.content + ((m.tool_calls or []) | tojson)")
    assert render(prints, row).lost is None


def test_arguments_are_json_text_where_the_template_takes_text():
    call = [{"function": {"name": "look", "arguments": {"at": "Bjørn", "n": 2}}}]
    rendered = render(DROPS_THINKING, pair("Hi", [assistant("", tool_calls=call)], "No"), bos="<s>")
    assert rendered.texts[0].endswith('<|call|>look\n{"at": "Bjørn", "n": 2}</s>')


def test_the_least_loss_is_told():
    """A template of parts loses the text of text, but of parts only the reasoning."""
    row = pair("2+2?", [assistant("4", reasoning_content="add")], "5")
    assert "the reasoning of an answer" in render(PARTS, row).lost


def test_a_part_that_is_printed_as_data_is_no_way_out():
    cuts = CHATML.replace("m.content", "m.content[:5]")
    assert "the text of an answer" in render(cuts, pair("Hi", "A long answer", "No")).lost
    only_data = CHATML.replace("m.content", "m.content[0].items() | list and m.content")
    assert "neither as text nor as parts" in render(only_data, ROW).lost


def test_a_refusal_is_the_first_one():
    row = pair([{"role": "system", "content": "Be brief."}, user("Hi")], "Hello", "No")
    with pytest.raises(DataError, match="TemplateError: System role not supported"):
        render(TURNS, row, bos="<s>")
