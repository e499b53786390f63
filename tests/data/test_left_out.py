"""What a template leaves out is found, and what it only writes in another way is not."""

import html
import json
from dataclasses import replace

import pytest

from prefopt.data import read_example
from prefopt.data.left_out import find_left_out, is_held
from prefopt.data.template import render_messages

from .templates import (
    CHATML,
    DROPS_THINKING,
    HEADERS,
    INST,
    THINKING,
    TOOL_TAGS,
    assistant,
    bytes_tokenizer,
    pair,
    user,
)

TOOL = {"type": "function", "function": {"name": "find_ship", "parameters": {"type": "object"}}}
ALWAYS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m | tojson }}<|im_end|>\n{% endfor %}"


def call(arguments, name="find_ship"):
    function = {"name": name, "arguments": arguments}
    return [{"id": "abcdefghi", "type": "function", "function": function}]


def left_out(template, row, bos="<s>"):
    """Return what is lost of a row, without the words around it, and the history."""
    rendered = render_messages(read_example(row, 0), 0, bytes_tokenizer(template, bos=bos))
    lost = rendered.lost or ""
    return lost.removeprefix("the chat template leaves out ").partition(":")[0], rendered.history


THOUGHT = pair("2+2?", "<think>\nadd\n</think>\n\n4", "<think>\nguess\n</think>\n\n5")
IN_KEY = pair(
    "2+2?",
    [assistant("4", reasoning_content="add")],
    [assistant("5", reasoning_content="guess")],
)
CALLS = pair("Where?", [assistant("", tool_calls=call({"name": "Ada", "year": 1851}))], "Ask her.")
ASKED = [user("2+2?"), assistant("<think>add</think>4"), user("Sure?")]


@pytest.mark.parametrize(
    ("template", "row", "lost"),
    [
        (CHATML, THOUGHT, ""),
        (THINKING, THOUGHT, ""),
        (HEADERS, THOUGHT, ""),
        (DROPS_THINKING, THOUGHT, "the reasoning of an answer"),
        (CHATML, IN_KEY, "the reasoning of an answer"),
        (THINKING, IN_KEY, ""),
        (CHATML, CALLS, "a tool call of an answer"),
        (HEADERS, CALLS, "a tool call of an answer"),
        (THINKING, CALLS, ""),
        (INST, CALLS, ""),
        (TOOL_TAGS, CALLS, ""),
        (DROPS_THINKING, CALLS, ""),  # takes arguments as JSON text only
        (CHATML, CALLS | {"tools": [TOOL]}, "a tool call of an answer"),
        (THINKING, CALLS | {"tools": [TOOL]}, "tools"),
        (INST, CALLS | {"tools": [TOOL]}, ""),
        (TOOL_TAGS, CALLS | {"tools": [TOOL]}, ""),
        (CHATML, pair("Hi", "Hello", "No", tools=[TOOL]), "tools"),
        (CHATML, pair("Use find_ship", "Hello", "No", tools=[TOOL]), "tools"),
    ],
)
def test_what_answers_and_tools_lose(template, row, lost):
    assert left_out(template, row) == (lost, None)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_looked_for_under_every_key(key):
    row = pair("2+2?", [assistant("4", **{key: "add"})], [assistant("5")])
    assert left_out(CHATML, row)[0] == "the reasoning of an answer"
    assert left_out(ALWAYS, row)[0] == ""


@pytest.mark.parametrize(
    "tags",
    [
        "<think> </think>",
        "<thinking> </thinking>",
        "[THINK] [/THINK]",
        "<reasoning> </reasoning>",
        "<|begin_of_thought|> <|end_of_thought|>",
        "<seed:think> </seed:think>",
        "◁think▷ ◁/think▷",
    ],
)
def test_reasoning_is_told_from_the_answer_whatever_stands_around_it(tags):
    begin, end = tags.split()
    cuts = "{% for m in messages %}<|im_start|>{{ m.content.split(END)[-1] }}{% endfor %}"
    row = pair("2+2?", f"{begin}\nadd them\n{end}\n4", "5")
    assert left_out(cuts.replace("END", repr(end)), row)[0] == "the reasoning of an answer"
    swaps = cuts.replace("split(END)[-1]", f"replace({begin!r}, '<<').replace({end!r}, '>>')")
    assert left_out(swaps, row)[0] == ""


def test_reasoning_of_earlier_answers_is_history():
    assert left_out(THINKING, pair(ASKED, "Yes", "No")) == ("", "add")
    assert left_out(DROPS_THINKING, pair(ASKED, "Yes", "No")) == ("", "add")
    assert left_out(CHATML, pair(ASKED, "Yes", "No")) == ("", None)


@pytest.mark.parametrize(
    ("leaves_out", "lost"),
    [
        ("m.role == 'system'", "the text of a message of the prompt, whose role is 'system'"),
        ("m.role == 'tool'", "the text of a message of the prompt, whose role is 'tool'"),
        ("not loop.last", "the text of a message of the prompt, whose role is 'system'"),
        ("m.role == 'assistant' and loop.last", "the text of an answer"),
        ("false", ""),
    ],
)
def test_messages_that_a_template_skips_are_missed(leaves_out, lost):
    template = (
        "{% for m in messages %}{% if SKIP %}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
        "{% endfor %}"
    ).replace("SKIP", leaves_out)
    turns = [
        {"role": "system", "content": "Be brief."},
        user("Where is Ada?"),
        assistant("Let me look.", tool_calls=call({"name": "Ada"})),
        {"role": "tool", "content": "in port"},
    ]
    assert left_out(template, pair(turns, "In port.", "At sea."))[0] == lost


def test_a_tool_call_of_the_prompt_is_looked_for_too():
    turns = [user("Where?"), assistant("", tool_calls=call({"name": "Ada"})), user("And?")]
    lost = "a tool call of a message of the prompt, whose role is 'assistant'"
    assert left_out(CHATML, pair(turns, "In port.", "At sea."))[0] == lost
    assert left_out(THINKING, pair(turns, "In port.", "At sea."))[0] == ""


def test_what_is_missing_beside_the_reasoning_of_a_message_is_missed_too():
    thought = assistant("<think>add</think>", tool_calls=call({"name": "Ada"}))
    strips = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    lost = "a tool call of a message of the prompt, whose role is 'assistant'"
    assert left_out(strips, pair([user("Where?"), thought, user("And?")], "Yes", "No")) == (
        lost,
        "add",
    )
    asked = pair([user("<think>add</think>2+2?")], "4", "5")
    lost = "the reasoning of a message of the prompt, whose role is 'user'"
    assert left_out(strips, asked) == (lost, None)


def test_an_answer_must_be_in_the_completion_not_only_in_the_prompt():
    drops = CHATML.replace("m.content", "m.content if m.role == 'user' else ''")
    assert left_out(drops, pair("Say yes or no.", "yes", "no"))[0] == "the text of an answer"


def test_a_tool_that_only_a_question_names_is_missing_unless_its_description_is_there():
    tool = {"name": "find_ship", "description": "Where a ship is."}
    row = pair("What does find_ship do?", "It finds.", "No idea.", tools=[tool])
    assert left_out(CHATML, row)[0] == "tools"
    named = "{{ tools[0].name }} {{ tools[0].description }}" + CHATML
    assert left_out(named, row)[0] == ""
    listed = [{"role": "system", "content": "You have find_ship."}, user("Hi")]
    assert left_out(CHATML, pair(listed, "Hello", "No", tools=[tool]))[0] == ""


@pytest.mark.parametrize("tool", ["find_ship", {"declarations": [{"name": "find_ship"}]}])
def test_a_tool_without_a_name_of_its_own_is_found_by_its_words(tool):
    row = read_example(pair("Hi", "Hello", "No"), 0)
    row = replace(row, tools=[tool])
    assert find_left_out(row, "Hi", ["Hi Hello", "Hi No"]).lost
    assert not find_left_out(row, "find_ship Hi", ["find_ship Hi Hello", "find_ship Hi No"]).lost


@pytest.mark.parametrize(
    "text",
    [
        'Say "é" \\ and\n\ttwo lines',
        "x < y & z > 'w'",
        "\\frac{1}{2} \\nabla",
        "👍",
        "价格: 5 €",
        "?!",
    ],
)
@pytest.mark.parametrize("escape", ["{}", "json", "ascii json", "json of json", "html", "lines"])
def test_how_a_text_is_escaped_does_not_matter(text, escape):
    written = {
        "{}": text,
        "json": json.dumps(text, ensure_ascii=False),
        "ascii json": json.dumps(text),
        "json of json": json.dumps(json.dumps(text)),
        "html": html.escape(text),
        "lines": "  ".join(line.strip() for line in text.splitlines()),
    }[escape]
    assert is_held(f"  {text}\n", f"<|im_start|>{written}<|im_end|>")
    assert not is_held(text + "more", f"<|im_start|>{written}<|im_end|>")


@pytest.mark.parametrize("number", [3, -7, 2.0, 0.25, 1e-05, True, None, [1, {"a": "deep"}]])
@pytest.mark.parametrize("written", ["json", "python", "number"])
def test_arguments_are_found_as_json_or_python_writes_them(number, written):
    template = (
        "{% for m in messages %}{{ m.content }}{{ (m.tool_calls or []) | tojson }}{% endfor %}"
    )
    if written != "json":
        template = template.replace(" | tojson", "")
    row = read_example(pair("Hi", [assistant("", tool_calls=call({"n": number}))], "No"), 0)
    rendered = render_messages(row, 0, bytes_tokenizer(template))
    assert rendered.lost is None
    texts = [text.replace("2.0", "2") for text in rendered.texts]
    assert find_left_out(row, rendered.prompt, texts).lost == []
    emptied = [text.replace("find_ship", "") for text in rendered.texts]
    assert len(find_left_out(row, rendered.prompt, emptied).lost) == 1
