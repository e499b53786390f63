"""Layouts of other programs: alpaca, trajectories, and messages written as text."""

import json

import pytest

from prefopt.data import DataError, read_example

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}
PAIR = {"chosen": "Hello", "rejected": "Go away"}
TOOL = {"type": "function", "function": {"name": "weather"}}


def read(**row):
    return read_example(row, 7)


def refused(**row):
    with pytest.raises(DataError) as caught:
        read(**row)
    assert caught.value.row == 7
    return caught.value


def user(text):
    return {"role": "user", "content": text}


# Alpaca -------------------------------------------------------------------------------------------


def test_instruction_and_input_are_what_the_user_says():
    example = read(instruction="Add.", input="1, 2", **PAIR)
    assert (example.kind, example.form) == ("paired", "messages")
    assert example.prompt == [user("Add.\n1, 2")]
    assert example.completions == [[ANSWER], [OTHER]]


@pytest.mark.parametrize("nothing", [None, "", " \n", float("nan"), []])
def test_an_empty_input_adds_nothing(nothing):
    assert read(instruction="Add.", input=nothing, history=nothing, **PAIR).prompt == [user("Add.")]


def test_an_input_alone_is_said_and_nothing_at_all_is_an_error():
    assert read(instruction="", input="1, 2", **PAIR).prompt == [user("1, 2")]
    assert refused(instruction=" ", input="", **PAIR).column == "instruction"
    assert refused(instruction="Add.", input=[3.5], **PAIR).column == "input"


@pytest.mark.parametrize(
    "history",
    [
        [["Hi", "Hello"]],
        [("Hi", "Hello")],
        "[['Hi', 'Hello']]",
        [USER, ANSWER],
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        json.dumps([USER, ANSWER]),
    ],
)
def test_history_holds_earlier_turns_and_system_goes_first(history):
    example = read(instruction="Bye", history=history, system="Be kind.", **PAIR)
    system = {"role": "system", "content": "Be kind."}
    assert example.prompt == [system, USER, ANSWER, user("Bye")]


@pytest.mark.parametrize("history", ["Hi", [["Hi"]], [["Hi", None]], [3]])
def test_other_history_is_refused(history):
    assert refused(instruction="Bye", history=history, **PAIR).column == "history"


def test_output_and_label_are_an_unpaired_row():
    example = read(instruction="Add.", input="1, 2", output="3", label=True)
    assert (example.kind, example.desirable) == ("unpaired", [True])
    assert example.completions == [[{"role": "assistant", "content": "3"}]]
    assert refused(instruction="Add.", output="3", kto_tag=True).column is None
    assert "rename_column('kto_tag', 'label')" in str(
        refused(instruction="Add.", output="3", kto_tag=True)
    )


def test_an_instruction_goes_with_every_kind():
    ranked = read(instruction="Add.", completions=["3", "4"], ranks=[1, 0])
    assert (ranked.kind, ranked.prompt) == ("ranked", [user("Add.")])
    assert read(instruction="Add.", completion="3", label=0).prompt == [user("Add.")]
    assert read(instruction="Add.", chosen=[ANSWER], rejected=[OTHER]).prompt == [user("Add.")]


# Trajectories -------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [("role", "content"), ("from", "value")])
def test_a_trajectory_is_the_prompt(style):
    turns = [("user", "Solve."), ("assistant", "Step 1"), ("user", "Wrong.")]
    trajectory = [dict(zip(style, turn, strict=True)) for turn in turns]
    example = read(trajectory=trajectory, chosen="Step 2: a", rejected="Step 2: b", task="Math")
    assert [(message["role"], message["content"]) for message in example.prompt] == turns
    assert example.completions[0] == [{"role": "assistant", "content": "Step 2: a"}]


# Messages written as text -------------------------------------------------------------------------


@pytest.mark.parametrize("write", [json.dumps, repr])
@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"prompt": [USER], "completion": [ANSWER], "label": True},
        {"messages": [USER, ANSWER], "label": True},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": ANSWER, "rejected": OTHER},
    ],
)
def test_messages_may_be_text(row, write):
    is_text = {name: write(value) if name != "label" else value for name, value in row.items()}
    assert read(**is_text) == read(**row)


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_lists_may_be_text(write):
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0]}
    assert read(**{name: write(value) for name, value in row.items()} | {"prompt": "p"}) == read(
        **row
    )
    ranked = {"prompt": [USER], "completions": [write([ANSWER]), write([OTHER])], "ranks": [0, 1]}
    assert read(**ranked).completions == [[ANSWER], [OTHER]]


@pytest.mark.parametrize("write", [json.dumps, lambda value: value])
def test_an_object_may_hold_messages_and_their_tools(write):
    sides = {
        "chosen": write({"messages": [USER, ANSWER], "tools": [TOOL]}),
        "rejected": write(
            {"messages": [USER, OTHER], "tools": [TOOL], "parallel_tool_calls": True}
        ),
    }
    example = read(**sides)
    assert (example.prompt, example.completions) == ([USER], [[ANSWER], [OTHER]])
    assert example.tools == [TOOL]
    error = refused(**sides, tools=[{"name": "clock"}])
    assert (error.column, "other tools" in str(error)) == ("chosen", True)
    error = refused(prompt=write({"messages": [USER], "documents": ["a"]}), **PAIR)
    assert (error.column, "'documents'" in str(error)) == ("prompt", True)


@pytest.mark.parametrize("column", ["prompt", "chosen"])
def test_text_that_is_cut_off_is_an_error(column):
    row = {"prompt": "p", **PAIR, column: json.dumps([USER, ANSWER])[:-9]}
    error = refused(**row)
    assert (error.column, "begins like messages" in str(error)) == (column, True)


def test_text_that_begins_with_a_bracket_is_text():
    example = read(prompt="[1, 2] has length", chosen="[2]", rejected='{"n": 3}')
    assert (example.form, example.completions) == ("text", ["[2]", '{"n": 3}'])
