"""No column with content is left out in silence, whatever its name and the kind of the row."""

import datetime
import io
import logging
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from PIL import Image as Pictures

from prefopt.data import DataError, prepare_dataset, read_example
from prefopt.data.names import meaning_of
from prefopt.data.unread import plain_columns

USER = {"role": "user", "content": "Name a fruit that grows on trees."}
GOOD = {"role": "assistant", "content": "A pear."}
BAD = {"role": "assistant", "content": "A stone."}
HH = "\n\nHuman: Name a fruit that grows on trees.\n\nAssistant:"
# Rows of every kind, with a prompt of their own or without.
ROWS = {
    "pair of text": {"prompt": "A fruit:", "chosen": " pear", "rejected": " stone"},
    "pair of messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "pair of conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "pair of transcripts": {"chosen": f"{HH} A pear.", "rejected": f"{HH} A stone."},
    "pair that shares text": {"chosen": "A fruit is a pear", "rejected": "A fruit is a stone"},
    "pair without a prompt": {"chosen": "Pear", "rejected": "Stone"},
    "unpaired": {"prompt": "A fruit:", "completion": " pear", "label": True},
    "unpaired conversation": {"messages": [USER, GOOD], "label": False},
    "ranked": {"prompt": "A fruit:", "completions": [" pear", " stone"], "ranks": [0, 1]},
    "responses": {"messages": [USER], "responses": ["A pear.", "A stone."]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "A fruit?"}],
        "chosen": {"from": "gpt", "value": "A pear."},
        "rejected": {"from": "gpt", "value": "A stone."},
    },
    "alpaca": {"instruction": "Name a fruit.", "chosen": "A pear.", "rejected": "A stone."},
    "trajectory": {"trajectory": [USER], "chosen": "A pear.", "rejected": "A stone."},
    "token ids": {"prompt_ids": [3, 4], "chosen_ids": [5], "rejected_ids": [6]},
    "labelled token ids": {"prompt_ids": [3, 4], "completion_ids": [5], "label": True},
}
TEXT = "Only fruit that are sold in Norway, please."
TURNS = [{"role": "user", "content": TEXT}]
CONTENT = {
    "Prompt": TEXT,
    "question": TEXT,
    "Instructions": TEXT,
    "query": TEXT,
    "Input": TEXT,
    "context": TEXT,
    "promt": TEXT,
    "user_prompt": TEXT,
    "initial_reason_steps": TEXT,
    "conversation": TURNS,
    "dialogue": [TEXT, "Yes."],
    "chat_history": [["Hi", TEXT]],
    "turns": TURNS,
    "previous_messages": str(TURNS),
    "transcript": TEXT,
    "system_prompt": TEXT,
    "system_message": TEXT,
    "functions": [{"name": "weather"}],
    "available_tools": '[{"name": "weather"}]',
    "image": {"bytes": None, "path": "a.png"},
    "images": [{"bytes": b"x", "path": None}],
    "image_path": "a.png",
    "Image_URL": "https://example.org/a.png",
    "pixel_values": [[0.5, 0.25]],
    "video": "a.mp4",
    "audio": {"array": [0.5], "sampling_rate": 16000},
    # Content by its shape.
    "foo": TURNS,
    "bar": [{"from": "human", "value": TEXT}],
    "metadata": {"messages": TURNS},
    "notes": '[{"role": "user", "content": "Hi"}]',
    "thing": {"bytes": b"x", "path": None},
    "things": [{"bytes": None, "path": "a.wav"}],
    "blob": bytes(100),
    "payload": "data:image/png;base64,AAAA",
    "file_name": "coco/0001.JPG",
    "url": "https://example.org/a.png",
}
MEDIA_BY_SHAPE = ("thing", "things", "blob", "payload", "file_name", "url")
METADATA = {
    "id": "row 7 of the set",
    "source": "a web page",
    "model": "some model",
    "score": 0.5,
    "chosen_rating": 5.0,
    "tags": ["a b", "c"],
    "timestamp": datetime.datetime(2026, 1, 1),
    "page_url": "https://example.org",
    "prompt_id": "ab12",
    "num_turns": 3,
    "is_image": True,
    "rationale": "Pears are fruit and stones are not, as everyone knows.",
    "explanation": TEXT,
    "query_tone": "polite",
    "input_ids": [1, 2],
    "embedding": [0.5, 0.25],
    "weight": 1.0,
}
EMPTY = (None, "", " \n", [], {}, [None], [""], {"bytes": None, "path": None}, "[]", False)
SHARES = "pair that shares text"


def refused(row, **more):
    with pytest.raises(DataError) as caught:
        read_example({**row, **more}, 7)
    return caught.value


@pytest.mark.parametrize("kind", ROWS)
def test_content_that_is_not_read_is_refused_in_every_kind_of_row(kind):
    for column, value in CONTENT.items():
        error = refused(ROWS[kind], **{column: value})
        assert (error.row, error.column) == (7, column)
        assert f"dataset.remove_columns({column!r})" in str(error)
        is_media = meaning_of(column).topic == "media" or column in MEDIA_BY_SHAPE
        assert ("images are not supported yet" in str(error)) == is_media, column


@pytest.mark.parametrize("kind", [kind for kind in ROWS if kind != "pair without a prompt"])
def test_what_is_said_about_a_row_is_no_error(kind):
    for column, value in METADATA.items():
        with_it = read_example({**ROWS[kind], column: value}, 7)
        assert with_it == read_example(ROWS[kind], 7), column


@pytest.mark.parametrize("nothing", EMPTY)
@pytest.mark.parametrize("column", ["context", "image", "functions", "dialog", "Prompt", "foo"])
def test_an_empty_column_is_no_error(column, nothing):
    assert read_example({**ROWS["alpaca"], column: nothing}, 7) == read_example(ROWS["alpaca"], 7)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("column", CONTENT)
def test_content_is_refused_in_datasets_and_streams(words, column, stream):
    row = ROWS["pair of text"]
    rows = Dataset.from_list([{**row, column: None}, {**row, column: CONTENT[column]}])
    with pytest.raises(DataError) as caught:
        prepare_dataset(rows.to_iterable_dataset() if stream else rows, words)
    assert (caught.value.row, caught.value.column) == (1, column)
    assert (caught.value.dataset) == "train"


def test_content_is_refused_in_a_stream_of_unknown_columns_also_late(words):
    row = ROWS["pair of text"]

    def generate():
        yield from [{**row, "image": None}] * 200
        yield {**row, "image": Pictures.new("RGB", (2, 2))}

    stream = prepare_dataset(IterableDataset.from_generator(generate), words)
    with pytest.raises(DataError, match="row 200, column 'image': images are not supported yet"):
        list(stream.dataset)


# Images -------------------------------------------------------------------------------------------


def pictures(values, feature):
    rows = {name: [value] * len(values) for name, value in ROWS["pair of text"].items()}
    types = Features({**dict.fromkeys(rows, Value("string")), "thing": feature})
    return Dataset.from_dict({**rows, "thing": values}, types)


@pytest.mark.parametrize("stream", [False, True])
def test_columns_of_the_type_image_are_refused_undecoded(words, stream):
    broken = {"bytes": b"no image at all", "path": None}
    for dataset in (
        pictures([None, None, broken], Image()),
        pictures([[], None, [broken]], List(Image())),
    ):
        with pytest.raises(DataError, match="row 2, column 'thing': images are not supported yet"):
            prepare_dataset(dataset.to_iterable_dataset() if stream else dataset, words)


@pytest.mark.parametrize("stream", [False, True])
def test_empty_columns_of_the_type_image_are_no_error(words, stream):
    for dataset in (pictures([None, None], Image()), pictures([[], None], List(Image()))):
        prepared = prepare_dataset(dataset.to_iterable_dataset() if stream else dataset, words)
        assert len(list(prepared.dataset)) == 2


def test_pictures_and_arrays_of_pixels_are_images_under_any_name():
    row = ROWS["pair of text"]
    picture = Pictures.new("RGB", (2, 2))
    written = io.BytesIO()
    picture.save(written, "png")
    for value in (picture, [picture], np.zeros((2, 2, 3)), written.getvalue()):
        assert "images are not supported yet" in str(refused(row, thing=value))
    assert refused(ROWS["sharegpt"], thing=picture, question=TEXT).column == "thing"


# What is read elsewhere ---------------------------------------------------------------------------


def test_a_column_that_repeats_what_was_read_is_no_error():
    talk = ROWS["pair of conversations"]
    more = {
        "question": "Name a fruit that grows on trees. ",
        "messages": [USER, GOOD],
        "conversation": [{"input": USER["content"], "output": GOOD["content"]}],
        "prompt_text": "<|user|>",
    }
    example = read_example({**talk, **more, "prompt_text": None}, 7)
    assert example.unread == ("messages",)
    assert replace(example, unread=()) == read_example(talk, 7)
    assert refused(talk, prompt_text="<|user|> Hi").column == "prompt_text"


def test_a_part_of_the_prompt_is_a_repeat_unless_it_is_short():
    row = {"prompt": "Read: The apple fell far from the tree. What fell?", **ROWS["alpaca"]}
    del row["instruction"]
    read_example({**row, "context": "The apple fell far from the tree."}, 7)
    assert refused(row, context="The apple").column == "context"


def test_what_only_an_answer_says_was_not_asked():
    row = {"prompt": "Say it again.", "chosen": TEXT, "rejected": "No."}
    assert refused(row, context=TEXT).column == "context"


def test_messages_that_differ_from_the_conversations_are_refused():
    error = refused(ROWS["pair of conversations"], messages=TURNS)
    assert (error.column, "which is read from what the completions begin with" in str(error)) == (
        "messages",
        True,
    )


def test_the_texts_of_token_ids_are_theirs():
    row = ROWS["token ids"]
    texts = {"prompt": "a", "chosen": "b", "rejected": [GOOD]}
    example = read_example({**row, **texts}, 7)
    assert example.unread == ("prompt", "chosen", "rejected")
    assert replace(example, unread=()) == read_example(row, 7)


def test_text_of_any_name_may_be_the_prompt_where_none_is_given():
    assert refused(ROWS[SHARES], text=TEXT).column == "text"
    assert refused(ROWS["pair without a prompt"], title=TEXT).column == "title"
    assert refused(ROWS["pair without a prompt"], lines=["one", TEXT]).column == "lines"
    assert "rename_column('text', 'prompt')" in str(refused(ROWS[SHARES], text=TEXT))
    for row in (ROWS["pair of text"], ROWS["pair of transcripts"]):
        assert read_example({**row, "text": TEXT}, 7) == read_example(row, 7)


# Advice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["context", "Prompt"])
def test_the_advice_joins_a_second_part_of_the_prompt(column):
    row = {**ROWS["pair of text"], column: TEXT}
    error = refused(row)
    names = {column: "input", "prompt": "instruction"}
    assert f"dataset.rename_columns({names!r})" in str(error)
    renamed = Dataset.from_list([row]).rename_columns(names)
    assert read_example(renamed[0], 7).prompt == [{"role": "user", "content": f"A fruit:\n{TEXT}"}]


def test_the_prompt_is_named_before_other_columns():
    error = refused(ROWS["pair without a prompt"], system="Be kind.", query=TEXT, history=[["a"]])
    assert error.column == "query"
    assert "'instruction', beside which 'system', 'input' and 'history' are read" in str(error)
    assert "the same holds of 'history', 'system'" in str(error)


def test_columns_of_numbers_and_metadata_need_not_be_looked_at():
    rows = Dataset.from_list([{**ROWS["pair of text"], **METADATA, "foo": "x", "data": [{"a": 1}]}])
    plain = plain_columns(rows.features, ["prompt", "chosen", "rejected"])
    looked_at = {*rows.column_names} - {*plain}
    assert looked_at == {
        *("prompt", "chosen", "rejected", "foo", "rationale", "explanation", "query_tone"),
        "page_url",
    }
    assert plain_columns(None, []) == []


def test_columns_that_are_not_read_are_listed_in_the_report(words):
    rows = [{**ROWS["pair of text"], **METADATA, "label": 1, "score_chosen": 2.0}]
    report = prepare_dataset(Dataset.from_list(rows), words).report
    assert report.not_read == (*(name for name in METADATA if name != "weight"), "label")
    assert "not read     id, source, model, " in report.render()
    ids = [{**ROWS["token ids"], "prompt": "a", "id": 7}]
    assert prepare_dataset(Dataset.from_list(ids), None).report.not_read == ("id", "prompt")
    unpaired = [{**ROWS["unpaired"], "ranks": [1]}]
    assert prepare_dataset(Dataset.from_list(unpaired), words).report.not_read == ("ranks",)
    pair = {**ROWS["pair of text"], "completion": None, "label": True, "responses": ["a"]}
    mixed = [pair, {**dict.fromkeys(pair), **ROWS["unpaired"]}]
    report = prepare_dataset(Dataset.from_list(mixed), words).report
    assert report.not_read == ("label", "responses")


@pytest.mark.parametrize("column", ["chosen_mask", "completion_mask", "KL_completion_ids"])
def test_masks_beside_text_are_refused(column):
    error = refused(ROWS["pair of text"], **{column: [1, 0]})
    assert (error.column, "goes with token ids" in str(error)) == (column, True)


def test_columns_that_a_stream_does_not_read_are_logged(words, caplog):
    rows = Dataset.from_list([{**ROWS["pair of text"], "id": "x", "source": "y"}])
    with caplog.at_level(logging.INFO, logger="prefopt.data.prepare"):
        prepare_dataset(rows.to_iterable_dataset(), words)
    assert "train data: columns that are not read: id, source" in caplog.text


def test_prepared_rows_are_prepared_again_with_what_they_repeat(words):
    rows = [{**ROWS["pair of messages"], "question": USER["content"]}]
    once = prepare_dataset(Dataset.from_list(rows), words).dataset
    assert "question" in once.column_names
    assert prepare_dataset(once, None).dataset[:] == once[:]
