"""Where prompts end: conversations and texts that are repeated in the completions."""

import pytest
from datasets import Dataset

from prefopt.data import DataError, prepare_dataset, read_example

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Name a\nfruit."}
ANSWER = {"role": "assistant", "content": "Pear"}
OTHER = {"role": "assistant", "content": "Stone"}
WHOLE = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}


def read(**row):
    return read_example(row, 7)


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "prompt", ["Name a\nfruit.", " Name a\r\nfruit. \n", "Name a fruit.", [user("Name a fruit. ")]]
)
def test_white_space_does_not_hide_that_a_prompt_is_repeated(prompt):
    example = read(prompt=prompt, **WHOLE)
    assert (example.prompt, example.completions) == ([USER], [[ANSWER], [OTHER]])


def test_parts_of_text_are_text_where_a_prompt_is_compared():
    parts = {"role": "user", "content": [{"type": "text", "text": "Name a fruit."}]}
    example = read(prompt="Name a fruit.", chosen=[parts, ANSWER], rejected=[parts, OTHER])
    assert example.prompt == [parts]


def test_conversations_that_differ_in_white_space_of_the_question_share_it():
    example = read(chosen=[USER, ANSWER], rejected=[user("Name a fruit. "), OTHER])
    assert (example.prompt, example.completions) == ([USER], [[ANSWER], [OTHER]])


def test_a_prompt_may_be_a_part_of_what_the_conversations_begin_with():
    start = [SYSTEM, user("Hi"), {"role": "assistant", "content": "Hello"}, USER]
    whole = {"chosen": [*start, ANSWER], "rejected": [*start, OTHER]}
    for prompt in ([USER], start[1:], start, "Name a fruit.", "Hi"):
        example = read(prompt=prompt, **whole)
        assert (example.prompt, example.completions) == (start, [[ANSWER], [OTHER]])


def test_a_system_message_as_prompt_goes_before_the_conversations():
    assert read(prompt=[SYSTEM], **WHOLE).prompt == [SYSTEM, USER]


def test_messages_say_where_the_prompt_ends_and_text_does_not():
    start = [user("Hi"), {"role": "assistant", "content": "Hello"}, USER]
    whole = {"chosen": [*start, ANSWER], "rejected": [*start, OTHER]}
    assert read(prompt="Hi", **whole).prompt == start
    example = read(prompt=[user("Hi")], **whole)
    assert example.prompt == start[:1]
    assert example.completions == [[*start[1:], ANSWER], [*start[1:], OTHER]]


def test_the_system_message_may_be_in_the_prompt_or_in_the_conversations():
    assert read(prompt=[SYSTEM, USER], **WHOLE).prompt == [SYSTEM, USER]
    own = {name: [SYSTEM, *messages] for name, messages in WHOLE.items()}
    for prompt in ([USER], [SYSTEM, USER], [SYSTEM], "Name a fruit."):
        assert read(prompt=prompt, **own).prompt == [SYSTEM, USER]
    rude = {"role": "system", "content": "Be rude."}
    with pytest.raises(DataError, match="column 'prompt': is not among the messages"):
        read(prompt=[rude, USER], **own)


@pytest.mark.parametrize("prompt", ["Name a fruit.", [USER]])
def test_one_of_the_completions_may_repeat_the_prompt(prompt):
    example = read(prompt=prompt, chosen=[USER, ANSWER], rejected=[OTHER])
    assert example.completions == [[ANSWER], [OTHER]]


def test_a_prompt_that_is_another_question_is_refused():
    for prompt in ("Name a tree.", [user("Name a tree.")], [SYSTEM, user("Name a tree.")]):
        with pytest.raises(DataError, match="column 'prompt': is not among the messages"):
            read(prompt=prompt, **WHOLE)


def test_a_conversation_may_go_on_after_an_answer():
    row = {"prompt": [user("Hi"), ANSWER], **WHOLE}
    example = read(**row)
    assert (example.prompt, example.completions) == (row["prompt"], [*WHOLE.values()])


@pytest.mark.parametrize("answers", [("Pear", "Stone"), ([ANSWER], [OTHER])])
def test_messages_that_end_with_the_chosen_answer_are_a_prompt_without_it(answers):
    example = read(messages=[USER, ANSWER], chosen=answers[0], rejected=answers[1])
    assert (example.prompt, example.completions) == ([USER], [[ANSWER], [OTHER]])


# Text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("The sky at noon is", "The sky at noon is"),
        ("The sky at noon is \n", "The sky at noon is"),
        ("The sky\r\nat noon is", "The sky\nat noon is"),
        ("The sky\nat noon is", "The sky\r\nat noon is"),
    ],
)
def test_a_prompt_that_all_completions_begin_with_is_taken_once(prompt, start):
    example = read(prompt=prompt, chosen=f"{start} blue", rejected=f"{start} green")
    assert example.prompt == prompt.replace("\r\n", "\n").strip()
    assert (example.completions, example.repeated) == ([" blue", " green"], True)


def test_a_prompt_that_is_repeated_after_messages_is_taken_once_too():
    texts = {"chosen": "Name a fruit. Pear", "rejected": "Name a fruit. Stone"}
    example = read(instruction="Name a fruit.", **texts)
    assert (example.completions, example.repeated) == ([[ANSWER], [OTHER]], True)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hi there", "Hi you"),
        ("The sky at noon is", "The sky at noon is blue", "green"),
        ("The sky at noon is", "The sky at noon is", "The sky at noon is green"),
        ("", "a", "b"),
    ],
)
def test_a_short_or_single_likeness_is_no_repeat(prompt, chosen, rejected):
    example = read(prompt=prompt, chosen=chosen, rejected=rejected)
    assert (example.prompt, example.completions) == (prompt, [chosen, rejected])
    assert not example.repeated


@pytest.mark.parametrize("prompt", ["Name a fruit.", "\n\nHuman: Name a fruit.\n\nAssistant:"])
def test_a_prompt_within_transcripts_is_theirs(prompt):
    start = "\n\nHuman: Name a fruit.\n\nAssistant:"
    example = read(prompt=prompt, chosen=f"{start} Pear", rejected=f"{start} Stone")
    assert (example.prompt, example.completions) == (start, [" Pear", " Stone"])
    assert example.repeated


def test_repeats_are_counted_in_the_report(words):
    rows = [
        {"prompt": "a b c", "chosen": "a b c d", "rejected": "a b c e"},
        {"prompt": "a b c", "chosen": " d", "rejected": " e"},
    ]
    prepared = prepare_dataset(Dataset.from_list(rows), words)
    assert prepared.report.repeated == 1
    assert "repeated     1 row whose completions began with the prompt" in prepared.report.render()
    first, second = (prepared.dataset[place]["completion_ids"] for place in (0, 1))
    assert first == second


def test_several_texts_on_one_side_are_told_to_be_a_ranking():
    with pytest.raises(DataError, match=r"column 'rejected': holds a list of texts .* a ranking"):
        read(prompt="A fruit:", chosen=" pear", rejected=[" stone", " chair"])
    with pytest.raises(DataError, match="column 'rejected': holds messages where another"):
        read(prompt="A fruit:", chosen=" pear", rejected=[OTHER])


def test_a_null_prompt_is_no_error_beside_another_one():
    row = {"chosen": "Pear", "rejected": "Stone", "prompt": None}
    assert read(**row, instruction="Name a\nfruit.").prompt == [USER]
    assert read(**row, messages=[USER]).prompt == [USER]
    with pytest.raises(DataError, match="column 'prompt': is null"):
        read(**row)
