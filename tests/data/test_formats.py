import pytest

from prefopt.data import DataError, read_example

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}
HH = "\n\nHuman: Hi\n\nAssistant:"


def read(**row):
    return read_example(row, 7)


def refused(**row):
    with pytest.raises(DataError) as caught:
        read(**row)
    assert caught.value.row == 7
    return caught.value


def test_a_pair_of_text_is_chosen_then_rejected():
    example = read(prompt="1 + 1 =", chosen=" 2", rejected=" 3", source="a book")
    assert (example.kind, example.form) == ("paired", "text")
    assert (example.prompt, example.completions) == ("1 + 1 =", [" 2", " 3"])
    assert (example.desirable, example.ranks) == ([True, False], [0, 1])


@pytest.mark.parametrize("label", [True, 1, 1.0])
def test_a_label_may_be_a_bool_or_a_number(label):
    assert read(prompt="a", completion="b", label=label).desirable == [True]
    assert read(prompt="a", completion="b", label=1 - label).desirable == [False]


@pytest.mark.parametrize("label", [-1, 2, 0.5, "good", "True", float("nan"), []])
def test_any_other_label_is_refused(label):
    error = refused(prompt="a", completion="b", label=label)
    assert error.column == "label"
    assert repr(label) in str(error)


def test_ranks_put_the_best_first_and_ties_share():
    example = read(prompt="p", completions=["c", "a", "b", "d"], ranks=[3, 1, 1, 9])
    assert example.completions == ["a", "b", "c", "d"]
    assert example.ranks == [0, 0, 1, 2]
    assert example.kind == "ranked"
    assert example.desirable == []


def test_scores_put_the_highest_first():
    example = read(prompt="p", completions=["a", "b", "c"], scores=[0.5, 2, -1])
    assert example.completions == ["b", "a", "c"]
    assert example.ranks == [0, 1, 2]
    assert example.scores == [2, 0.5, -1]


def test_ranks_decide_where_there_are_scores_too():
    example = read(prompt="p", completions=["a", "b"], ranks=[1, 0], scores=[9, 1])
    assert (example.completions, example.scores) == (["b", "a"], [1, 9])


def test_responses_are_best_first():
    example = read(messages=[USER], responses=["Hello", "Go away"])
    assert (example.kind, example.form, example.ranks) == ("ranked", "messages", [0, 1])
    assert example.prompt == [USER]
    assert example.completions == [[ANSWER], [OTHER]]


def test_one_completion_and_one_rank_are_no_preference():
    assert read(prompt="p", completions=["a"], ranks=[0]).unusable == (
        "one completion is no ranking"
    )
    assert read(prompt="p", completions=["a", "b"], scores=[1, 1]).unusable == (
        "all completions share one rank"
    )


def test_completions_need_ranks_or_scores():
    assert refused(prompt="p", completions=["a", "b"]).column == "ranks"


@pytest.mark.parametrize("ranks", [[0], [0, None], [0, "1"], [0, float("nan")], [True, False], 3])
def test_ranks_must_be_numbers_one_a_completion(ranks):
    assert refused(prompt="p", completions=["a", "b"], ranks=ranks).column == "ranks"


def test_a_transcript_splits_at_the_last_shared_turn():
    example = read(chosen=f"{HH} I am", rejected=f"{HH} I was\n\nHuman: ?\n\nAssistant: no")
    assert example.prompt == HH
    assert example.completions == [" I am", " I was\n\nHuman: ?\n\nAssistant: no"]


def test_identical_transcripts_split_too():
    example = read(chosen=f"{HH} yes", rejected=f"{HH} yes")
    assert (example.prompt, example.completions) == (HH, [" yes", " yes"])
    assert example.unusable is None


def test_a_single_transcript_splits_at_its_last_turn():
    example = read(completion=f"{HH} one\n\nHuman: more\n\nAssistant: two", label=True)
    assert example.prompt.endswith("Human: more\n\nAssistant:")
    assert example.completions == [" two"]


def test_other_text_splits_where_the_characters_part():
    example = read(chosen="The sky is blue.", rejected="The sky is green.")
    assert (example.prompt, example.completions) == ("The sky is", [" blue.", " green."])


def test_text_without_a_prompt_is_refused():
    assert refused(chosen="yes", rejected="no").column == "prompt"
    assert refused(completion="yes", label=True).column == "prompt"
    error = refused(question="Is it?", chosen="It is", rejected="It is not")
    assert error.column == "question"
    assert "rename_column" in str(error)


def test_identical_text_without_a_prompt_can_not_be_used():
    assert read(chosen="same", rejected="same").unusable is not None


def test_conversations_share_their_first_messages():
    example = read(chosen=[USER, ANSWER], rejected=[USER, OTHER])
    assert (example.prompt, example.completions) == ([USER], [[ANSWER], [OTHER]])


def test_identical_conversations_keep_their_last_message():
    example = read(chosen=[USER, ANSWER], rejected=[USER, ANSWER])
    assert (example.prompt, example.completions) == ([USER], [[ANSWER], [ANSWER]])


def test_a_prompt_of_messages_may_be_repeated_in_the_completions():
    repeated = read(prompt=[USER], chosen=[USER, ANSWER], rejected=[USER, OTHER])
    assert repeated == read(prompt=[USER], chosen=[ANSWER], rejected=[OTHER])


def test_a_prompt_of_text_before_messages_is_what_the_user_says():
    plain = read(prompt="Hi", chosen=[ANSWER], rejected=[OTHER])
    full = read(prompt="Hi", chosen=[USER, ANSWER], rejected=[USER, OTHER], messages=[USER, ANSWER])
    assert plain.prompt == full.prompt == [USER]
    assert plain.completions == full.completions == [[ANSWER], [OTHER]]
    assert refused(prompt="Ho", chosen=[USER, ANSWER], rejected=[USER, OTHER]).column == "prompt"


def test_sharegpt_turns_are_messages():
    example = read(
        conversations=[{"from": "system", "value": "Be."}, {"from": "human", "value": "Hi"}],
        chosen={"from": "gpt", "value": "Hello"},
        rejected={"from": "gpt", "value": "Go away"},
    )
    assert example.prompt == [{"role": "system", "content": "Be."}, USER]
    assert example.completions == [[ANSWER], [OTHER]]


def test_an_unknown_speaker_is_refused():
    error = refused(prompt=[{"from": "martian", "value": "Hi"}], chosen="a", rejected="b")
    assert (error.column, "martian" in str(error)) == ("prompt", True)


def test_an_unpaired_conversation_ends_with_its_completion():
    example = read(messages=[USER, ANSWER], label=0)
    assert (example.prompt, example.completions) == ([USER], [[ANSWER]])
    assert refused(messages=[USER, ANSWER, USER], label=0).column == "messages"


def test_the_system_column_goes_before_messages():
    system = {"role": "system", "content": "Be kind."}
    with_column = read(system="Be kind.", prompt=[USER], chosen="a", rejected="b")
    assert with_column.prompt == [system, USER]
    said_twice = read(system="Be kind.", prompt=[system, USER], chosen="a", rejected="b")
    assert said_twice.prompt == [system, USER]
    assert read(system="", prompt=[USER], chosen="a", rejected="b").prompt == [USER]
    error = refused(system="Be rude.", prompt=[system, USER], chosen="a", rejected="b")
    assert error.column == "system"
    assert refused(system="Be kind.", prompt="Hi", chosen="a", rejected="b").column == "system"


def test_tools_and_template_arguments_are_read_from_json_or_as_they_are():
    tool = {"type": "function", "function": {"name": "f", "strict": None}}
    text = '[{"type": "function", "function": {"name": "f"}}]'
    row = {"prompt": [USER], "chosen": "a", "rejected": "b"}
    given = read(**row, tools=[tool], chat_template_kwargs={"thinking": True, "other": None})
    parsed = read(**row, tools=text, chat_template_kwargs='{"thinking": true}')
    assert given.tools == parsed.tools == [{"type": "function", "function": {"name": "f"}}]
    assert given.options == parsed.options == {"thinking": True}
    assert refused(**row, tools="[").column == "tools"
    assert refused(**row, tools=3).column == "tools"
    assert refused(**row, chat_template_kwargs="[]").column == "chat_template_kwargs"
    plain = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert refused(**plain, chat_template_kwargs={"a": 1}).column == "chat_template_kwargs"
    assert refused(**plain, tools=[tool]).column == refused(**plain, tools=text).column == "tools"
    for none in (None, [], "[]"):
        assert read(**plain, tools=none).tools is None


def test_nulls_that_arrow_adds_to_messages_are_left_out():
    call = {"name": "f", "arguments": {"x": 1, "y": None}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    example = read(prompt=[USER | {"tool_calls": None}], completion=[message], label=True)
    assert example.prompt == [USER]
    assert example.completions == [
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"name": "f", "arguments": {"x": 1}}],
            }
        ]
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": None},
        {"role": "user"},
        {"content": "Hi"},
        {"role": "user", "content": [{"type": "image", "image": "x.png"}]},
        {"role": "user", "content": 3},
        "Hi",
    ],
)
def test_a_message_needs_role_and_text(message):
    assert refused(prompt=[message], chosen="a", rejected="b").column == "prompt"


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected"),
        ({"prompt": "p", "chosen": "a"}, "rejected"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "p", "chosen": None, "rejected": None}, "chosen"),
        ({"prompt": "p", "completion": "a"}, "label"),
        ({"prompt": "p", "completion": "a", "label": None}, "label"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "chosen"),
        ({"prompt": "p", "chosen": 3, "rejected": 4}, "chosen"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": [ANSWER]}, "rejected"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": [USER], "chosen": [], "rejected": [OTHER]}, "chosen"),
        ({"chosen": [ANSWER], "rejected": [OTHER]}, "prompt"),
        ({"chosen": [USER], "rejected": [USER]}, "prompt"),
        ({"prompt": "p", "completions": [], "ranks": []}, "completions"),
        ({"prompt": "p", "completions": ["a", None], "ranks": [0, 1]}, "completions"),
        ({"prompt": "p", "completions": "a", "ranks": [0]}, "completions"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "completion": "c", "label": 1}, None),
        ({"text": "p", "response": "a"}, None),
    ],
)
def test_what_is_wrong_is_told_by_row_and_column(row, column):
    assert refused(**row).column == column


def test_an_unknown_format_is_told_what_there_is_and_what_is_read():
    message = str(refused(messages=[USER], response="a", up=3))
    assert "messages, response, up" in message
    assert "'completion' and 'label'" in message
