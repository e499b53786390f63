"""Names of columns tell what they hold, also misspelt ones; and which column is meant."""

import pytest

from prefopt.data.names import Meaning, column_hint, meaning_of


@pytest.mark.parametrize(
    ("topic", "names"),
    [
        ("prompt", "Prompt PROMPT prompts userPrompt prompt_text raw_prompt question Questions"),
        ("prompt", "query input Inputs context instructions problem passage post source_question"),
        ("prompt", "few_shot_examples initial_reason_steps table_schema promt pormpt instrucion"),
        ("conversation", "conversation Conversations dialog dialogue chat chatHistory history"),
        ("conversation", "turns previous-turns messages trajectory transcript conversaton histry"),
        ("tools", "tools functions available_tools functionDefinitions tool_schemas"),
        ("system", "system System system_prompt system_message sysPrompt systemMessage persona"),
        ("media", "image images Image image_path image_url imageId pixel_values video audio img"),
        ("media", "picture_b64 screenshot imgae"),
        ("metadata", "id prompt_id source score chosen_rating chosen-model timestamp url lang"),
        ("metadata", "input_tokens prompt_length conversation_hash num_images image_width tags"),
        ("remark", "explanation rationale critique reference_answer all_generated_responses"),
    ],
)
def test_a_name_tells_what_a_column_holds(topic, names):
    found = {name: meaning_of(name).topic for name in names.split()}
    assert found == dict.fromkeys(found, topic)


@pytest.mark.parametrize("name", ["text", "title", "foo", "a", "1", "", "source_text", "theme"])
def test_other_names_tell_nothing(name):
    assert meaning_of(name).topic is None


def test_a_word_behind_the_known_one_makes_it_less_certain():
    assert meaning_of("query") == Meaning("prompt", certain=True)
    assert meaning_of("query_tone") == Meaning("prompt", certain=False)
    assert meaning_of("prompt_1") == Meaning("prompt", certain=True)


@pytest.mark.parametrize(
    ("wanted", "columns", "meant"),
    [
        ("chosen", ["prompt", "Chosen"], "Chosen"),
        ("chosen", ["chosen_response", "rejected_response"], "chosen_response"),
        ("rejected", ["rejcted", "chosen"], "rejcted"),
        ("label", ["kto_tag"], "kto_tag"),
        ("completion", ["prompt", "Completions"], "Completions"),
    ],
)
def test_the_column_that_is_meant_is_named(wanted, columns, meant):
    assert f"dataset.rename_column({meant!r}, {wanted!r})" in column_hint(wanted, columns)


def test_nothing_is_proposed_where_nothing_is_near():
    assert column_hint("chosen", ["prompt", "id", "chosen"]) == ""
