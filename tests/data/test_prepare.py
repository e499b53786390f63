"""Preparing: what is kept, cut, and set aside, on made-up rows and on the four real data sets."""

import gzip
import json
import logging

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import DataError, Room, load_rows, prepare_dataset

from .templates import CHATML, DROPS_THINKING, assistant, bytes_tokenizer, pair

CANONICAL = ["kind", "prompt_ids", "completion_ids", "desirable", "ranks", "prefopt_row"]
ids = st.lists(st.integers(0, 5), max_size=8)
some_ids = st.lists(st.integers(0, 5), min_size=1, max_size=8)
masked = some_ids.flatmap(
    lambda tokens: st.tuples(
        st.just(tokens), st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))
    )
)


def prepare(rows, tokenizer=None, **options):
    return prepare_dataset(Dataset.from_list(rows), tokenizer, **options)


def real(shared, name):
    with gzip.open(shared / f"data/preference/{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_every_kind_has_the_same_columns_and_types(words):
    pair = {"prompt": "p", "chosen": " a b", "rejected": " c"}
    unpaired = {"prompt": "p", "completion": " a", "label": False}
    ranking = {"prompt": "p", "completions": [" a", " b", " c"], "ranks": [2, 0, 0]}
    parts = [prepare([row], words).dataset for row in (pair, unpaired, ranking)]
    assert all(part.column_names == CANONICAL for part in parts)
    assert parts[0].features == parts[1].features == parts[2].features
    p, a, b, dot, c = (words.id_of(word) for word in ("p", "a", "b", ".", "c"))
    assert parts[0][0] == {
        "kind": "paired",
        "prompt_ids": [p],
        "completion_ids": [[a, b, dot], [c, dot]],
        "desirable": [True, False],
        "ranks": [0, 1],
        "prefopt_row": 0,
    }
    assert parts[1][0] == {
        "kind": "unpaired",
        "prompt_ids": [p],
        "completion_ids": [[a, dot]],
        "desirable": [False],
        "ranks": [],
        "prefopt_row": 0,
    }
    assert parts[2][0] == {
        "kind": "ranked",
        "prompt_ids": [p],
        "completion_ids": [[b, dot], [c, dot], [a, dot]],
        "desirable": [],
        "ranks": [0, 0, 1],
        "prefopt_row": 0,
    }


def test_rows_may_be_of_several_kinds(words):
    rows = [
        {"prompt": "p", "chosen": " a", "rejected": " b", "completion": None, "label": None},
        {"prompt": "p", "chosen": None, "rejected": None, "completion": " a", "label": True},
    ]
    prepared = prepare(rows, words)
    assert prepared.dataset["kind"][:] == ["paired", "unpaired"]
    assert prepared.kinds == {"paired", "unpaired"}
    assert prepared.report.kinds == {"paired": 1, "unpaired": 1}


def test_extra_columns_are_left_alone(words):
    row = {"prompt": "p", "chosen": " a", "rejected": " b", "id": "x", "scores_of_us": [1.0]}
    dataset = prepare([row], words).dataset
    assert dataset.column_names == ["id", "scores_of_us", *CANONICAL]
    assert (dataset[0]["id"], dataset[0]["scores_of_us"]) == ("x", [1.0])


@pytest.mark.parametrize("column", ["kind", "desirable", "completion_masks", "_reason"])
def test_a_column_that_would_be_overwritten_is_refused(words, column):
    with pytest.raises(DataError, match=f"column '{column}'.*rename"):
        prepare([{"prompt": "p", "completion": " a", "label": True, column: "mine"}], words)


def test_prepared_rows_may_be_prepared_again(words):
    rows = [
        {"prompt": "p", "completions": [" a", " b"], "scores": [0.0, 1.0]},
        {"prompt": "q", "completions": [" a c", " b d"], "scores": [1.0, 1.5]},
    ]
    once = prepare(rows, words, needs_kl=True).dataset
    assert prepare_dataset(once, None, needs_kl=True).dataset[:] == once[:]
    shorter = prepare_dataset(once, None, max_length=2).dataset
    assert shorter["completion_ids"][:] == [
        [completion[:1] for completion in row] for row in once["completion_ids"][:]
    ]
    unpaired_rows = prepare([{"prompt": "p", "completion": " a", "label": True}], words).dataset
    assert prepare_dataset(unpaired_rows, None).dataset[:] == unpaired_rows[:]


def test_reasons_to_set_a_row_aside_are_counted_with_their_rows(words):
    rows = [
        {"prompt": "a b c", "completions": [" d", " e"], "ranks": [0, 1]},
        {"prompt": "a b c d e", "completions": [" d", " e"], "ranks": [0, 1]},
        {"prompt": "a b c", "completions": [" d", " e"], "ranks": [1, 1]},
        {"prompt": "a", "completions": [" d"], "ranks": [0]},
        {"prompt": "a b c d e f", "completions": [" d", " e"], "ranks": [0, 1]},
    ]
    report = prepare(rows, words, max_length=5).report
    assert (report.rows, report.kept) == (5, 1)
    assert {reason: (part.count, part.rows) for reason, part in report.set_aside.items()} == {
        "the prompt leaves no room for a completion": (2, (1, 4)),
        "all completions share one rank": (1, (2,)),
        "one completion is no ranking": (1, (3,)),
    }
    assert report.room == Room(median=3, longest=6, enough=7)  # of 1, 3, 3, 5 and 6 tokens
    assert "max_length=7 leaves room in 95% of the rows" in report.render()


def test_where_no_prompt_leaves_room_the_error_says_what_max_length_would(words):
    prompts = [" ".join(["a"] * length) for length in range(6, 26)]
    rows = [{"prompt": prompt, "chosen": " d", "rejected": " e"} for prompt in prompts]
    with pytest.raises(DataError, match="the longest has 25: max_length=25 leaves room in 95%"):
        prepare(rows, words, max_length=5)


def test_where_all_prompts_leave_room_nothing_is_said_of_it(words):
    rows = [{"prompt": "a b", "chosen": " c", "rejected": " d"}]
    assert prepare(rows, words).report.room is None


def test_rows_of_which_the_template_leaves_something_out_are_set_aside():
    tool = {"type": "function", "function": {"name": "look"}}
    thought = [assistant("4", reasoning_content="add")]
    rows = [pair("2+2?", "4", "5", tools=None)] * 3
    rows[1] = pair("2+2?", "4", "5", tools=json.dumps([tool]))
    rows[2] = pair("2+2?", thought, "5")
    report = prepare(rows, bytes_tokenizer(CHATML)).report
    assert (report.rows, report.kept) == (3, 1)
    lines = [line for line in report.render().splitlines() if line.startswith("set aside")]
    assert [line.split(":")[1] for line in lines] == [
        " the chat template leaves out tools",
        " the chat template leaves out the reasoning of an answer",
    ]
    assert [aside.rows for aside in report.set_aside.values()] == [(1,), (2,)]
    with pytest.raises(
        DataError, match=r"no row is left \(1 row: the chat template leaves out tool"
    ):
        prepare(rows[1:2], bytes_tokenizer(CHATML))


def test_remarks_are_of_rows_that_are_kept_and_name_them_as_the_data_does(words):
    rows = [{"prompt": "Hi", "chosen": "a</s>", "rejected": "b"}] * 9
    rows[0] = rows[0] | {"prompt": "much too long for that"}
    rows[4] = rows[4] | {"chosen": "a"}
    report = prepare(rows, bytes_tokenizer(eos="</s>"), max_length=10).report
    (remark,) = report.remarks.values()
    assert (remark.count, remark.rows, remark.example) == (7, (1, 2, 3, 5, 6), "'a</s>'")


def test_no_row_left_is_an_error(words):
    rows = [{"prompt": "a b c", "completion": " d", "label": True}] * 2
    with pytest.raises(DataError, match=r"eval data: no row is left \(2 rows: the prompt leaves"):
        prepare(rows, words, max_length=3, name="eval")
    with pytest.raises(DataError, match="has no rows"):
        prepare_dataset(Dataset.from_dict({"prompt": []}), words)


def test_limits_below_one_are_refused(words):
    rows = [{"prompt": "a", "completion": " b", "label": True}]
    with pytest.raises(ValueError, match="max_length must be a whole number of at least 1, got 0"):
        prepare(rows, words, max_length=0)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        prepare(rows, words, batch_size=0)


def test_an_empty_completion_is_its_end_of_sequence_token(words):
    rows = [{"prompt": "a", "chosen": "", "rejected": " b"}]
    assert prepare(rows, words).dataset[0]["completion_ids"][0] == [words.id_of(".")]
    words.eos_token = None
    with pytest.raises(DataError, match="a completion has no token that counts"):
        prepare(rows, words)


def test_without_a_prompt_the_first_token_does_not_count():
    rows = [
        {"prompt_ids": [], "completion_ids": [1], "label": True},
        {"prompt_ids": [], "completion_ids": [1, 2], "label": True},
    ]
    report = prepare(rows).report
    assert report.kept == 1
    assert report.set_aside["a completion has no token that counts"].rows == (0,)


def test_the_format_of_the_data_does_not_matter(words):
    rows = [{"prompt_ids": [1, 2], "completion_ids": [3], "label": True}]
    dataset = Dataset.from_list(rows).with_format("numpy")
    assert prepare_dataset(dataset, None).dataset[0]["prompt_ids"] == [1, 2]


def test_the_error_of_a_row_names_data_row_and_column(words):
    rows = [{"prompt": "a", "completion": " b", "label": label} for label in (1, 0, 3)]
    with pytest.raises(DataError, match=r"^eval data, row 2, column 'label': needs True"):
        prepare(rows, words, name="eval")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ids, masked, masked), min_size=1, max_size=5), st.integers(1, 12))
def test_completions_and_masks_are_cut_at_the_end(rows, max_length):
    table = [
        {
            "prompt_ids": prompt,
            "chosen_ids": chosen[0],
            "rejected_ids": rejected[0],
            "chosen_mask": chosen[1],
            "rejected_mask": rejected[1],
        }
        for prompt, chosen, rejected in rows
    ]
    expected = []
    for prompt, *completions in rows:
        room = max_length - len(prompt)
        cut = [tokens[: max(room, 0)] for tokens, _ in completions]
        masks = [mask[: max(room, 0)] for _, mask in completions]
        if room > 0 and all(any(mask[0 if prompt else 1 :]) for mask in masks):
            expected.append((prompt, cut, masks))
    try:
        prepared = prepare(table, max_length=max_length)
    except DataError:
        assert not expected
        return
    dataset, report = prepared.dataset, prepared.report
    columns = ("prompt_ids", "completion_ids", "completion_masks")
    assert list(zip(*(dataset[column][:] for column in columns), strict=True)) == expected
    assert report.kept == len(expected)
    assert report.kept + sum(part.count for part in report.set_aside.values()) == len(rows)


def test_preparing_twice_finds_the_first_result(gpt2, shared_dir, tmp_path):
    rows = Dataset.from_list(real(shared_dir, "hh_helpful_base_test")[:20])
    rows.save_to_disk(str(tmp_path / "rows"))
    rows = Dataset.load_from_disk(str(tmp_path / "rows"))
    first = prepare_dataset(rows, gpt2, needs_kl=True).dataset
    gpt2("a text that changes nothing")
    second = prepare_dataset(rows, gpt2, needs_kl=True).dataset
    assert first._fingerprint == second._fingerprint
    assert first.cache_files == second.cache_files
    other = prepare_dataset(rows, gpt2, needs_kl=True, max_length=512).dataset
    assert other._fingerprint != first._fingerprint


@pytest.mark.slow
def test_two_processes_prepare_the_same(gpt2, shared_dir):
    rows = real(shared_dir, "hh_helpful_base_test")[:60]
    alone = prepare(rows, gpt2, needs_kl=True, max_length=200)
    together = prepare(rows, gpt2, needs_kl=True, max_length=200, num_proc=2)
    assert together.dataset[:] == alone.dataset[:]
    assert together.report == alone.report
    rows[45]["rejected"] = None
    with pytest.raises(DataError, match="train data, row 45, column 'rejected'"):
        prepare(rows, gpt2, num_proc=2)


# Streams ------------------------------------------------------------------------------------------


def unpaired_rows(count, **changes):
    return [
        {"prompt": f"p{n}", "completion": f" c{n}", "label": 1, "id": n, **changes}
        for n in range(count)
    ]


def test_a_stream_gives_the_same_rows(words):
    rows = unpaired_rows(230)
    rows[3]["prompt"] = rows[150]["prompt"] = "much too long for that"
    whole = prepare(rows, words, max_length=5)
    streamed = prepare_dataset(Dataset.from_list(rows).to_iterable_dataset(), words, max_length=5)
    assert isinstance(streamed.dataset, IterableDataset)
    assert streamed.report is None
    assert streamed.kinds == {"unpaired"}
    assert list(streamed.dataset) == list(whole.dataset)
    assert whole.report.kept == 228


def test_a_stream_of_unknown_columns_works(words):
    def generate():
        yield from unpaired_rows(5)

    stream = IterableDataset.from_generator(generate)
    assert stream.features is None
    prepared = prepare_dataset(stream, words, needs_kl=True)
    assert list(prepared.dataset)[1]["kl_completion_ids"] == [[words.id_of("c0"), words.id_of(".")]]


def test_a_stream_warns_of_the_first_row_it_sets_aside(words, caplog):
    rows = unpaired_rows(6)
    rows[2]["prompt"] = rows[4]["prompt"] = "much too long for that"
    stream = Dataset.from_list(rows).to_iterable_dataset()
    with caplog.at_level(logging.WARNING, logger="prefopt.data.prepare"):
        assert len(list(prepare_dataset(stream, words, max_length=5).dataset)) == 4
    messages = [record.getMessage() for record in caplog.records if "set aside" in record.message]
    assert len(messages) == 1
    assert "train data: row 2 is set aside: the prompt leaves no room" in messages[0]


def test_a_stream_warns_once_of_what_the_template_leaves_out(caplog):
    rows = [pair("2+2?", "4</s>", "5")] * 30
    rows[11] = rows[12] = pair("2+2?", "<think>add</think>4", "5")
    stream = Dataset.from_list(rows).to_iterable_dataset()
    tokenizer = bytes_tokenizer(DROPS_THINKING, eos="</s>", bos="<s>")
    with caplog.at_level(logging.INFO, logger="prefopt.data.prepare"):
        assert len(list(prepare_dataset(stream, tokenizer).dataset)) == 28
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "row 11 is set aside: the chat template leaves out the reasoning" in warnings[0]
    infos = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
    assert len(infos) == len({text.split(": ")[2] for text in infos}) == 2
    assert all(text.startswith("train data: row 0: ") for text in infos)


def test_a_stream_whose_first_rows_all_lose_something_is_an_error():
    rows = [pair("2+2?", "<think>add</think>4", "5")] * 8 + [pair("2+2?", "4", "5")]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    tokenizer = bytes_tokenizer(DROPS_THINKING, eos="</s>", bos="<s>")
    with pytest.raises(DataError, match=r"train data: none of the first 8 rows .*the reasoning of"):
        prepare_dataset(stream, tokenizer)
    assert len(list(prepare_dataset(stream.skip(1), tokenizer).dataset)) == 1


def test_the_first_rows_of_a_stream_are_checked_at_once_and_others_in_time(words):
    rows = unpaired_rows(300)
    rows[5]["label"] = 7
    with pytest.raises(DataError, match="eval data, row 5, column 'label'"):
        prepare_dataset(Dataset.from_list(rows).to_iterable_dataset(), words, name="eval")
    rows[5]["label"], rows[250]["label"] = 1, 7
    stream = prepare_dataset(Dataset.from_list(rows).to_iterable_dataset(), words, name="eval")
    with pytest.raises(DataError, match="eval data, row 250, column 'label'"):
        list(stream.dataset)
    with pytest.raises(DataError, match="has no rows"):
        prepare_dataset(IterableDataset.from_generator(lambda: iter(())), words)


# Real data ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_anthropic_transcripts(shared_dir, gpt2):
    rows = real(shared_dir, "hh_helpful_base_test")
    prepared = prepare(rows, gpt2, max_length=None)
    dataset, report = prepared.dataset, prepared.report
    # MANIFEST.md: 2354 rows, 2 identical pairs, 9 whose prompts differ before the last turn.
    assert (report.rows, report.kept, report.identical) == (2354, 2354, 2)
    assert report.kinds == {"paired": 2354}
    turn = "\n\nAssistant:"
    differing = [
        n
        for n, row in enumerate(rows)
        if row["chosen"].rpartition(turn)[0] != row["rejected"].rpartition(turn)[0]
    ]
    assert len(differing) == 9
    for number in [0, 721, 2168, *differing]:
        prompt, texts = dataset[number]["prompt_ids"], dataset[number]["completion_ids"]
        assert gpt2.decode(prompt).endswith(turn)
        for text, name in zip(texts, ("chosen", "rejected"), strict=True):
            assert gpt2.decode(prompt + text) == rows[number][name] + gpt2.eos_token


def test_human_rankings(shared_dir, gpt2):
    rows = real(shared_dir, "oasst_en100_rankings")
    prepared = prepare(rows, gpt2, max_length=None)
    assert prepared.kinds == {"ranked"}
    numbers = [len(row) for row in prepared.dataset["completion_ids"][:]]
    assert len(numbers) == 206
    # MANIFEST.md: 729 implied pairs.
    assert sum(n * (n - 1) // 2 for n in numbers) == 729
    first = prepared.dataset[0]
    for text, response in zip(first["completion_ids"], rows[0]["responses"], strict=True):
        assert response in gpt2.decode(text)


def test_human_labels_take_a_map_of_the_users_own(shared_dir, gpt2):
    rows = Dataset.from_list(real(shared_dir, "oasst_en100_votes"))
    with pytest.raises(DataError, match="do not hold preferences"):
        prepare_dataset(rows, gpt2)
    voted = rows.filter(lambda row: row["up"] != row["down"]).map(
        lambda row: {
            "prompt": row["messages"],
            "completion": row["response"],
            "label": row["up"] > row["down"],
        }
    )
    report = prepare_dataset(voted, gpt2, max_length=None).report
    # MANIFEST.md: 334 net up, 96 net down, 25 tied.
    assert (report.kept, report.desirable, report.undesirable) == (430, 334, 96)


def test_sharegpt_conversations(shared_dir, gpt2):
    rows = real(shared_dir, "dpo_en_demo")[:80]
    prepared = prepare(rows, gpt2, max_length=None)
    assert (prepared.report.kept, prepared.kinds) == (80, {"paired"})
    first = prepared.dataset[0]
    text = gpt2.decode(first["prompt_ids"] + first["completion_ids"][1])
    assert rows[0]["rejected"]["value"] in text
    assert text.count("<|im_start|>") == len(rows[0]["conversations"]) + 1


def test_a_real_file_loads_and_prepares(shared_dir, gpt2, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    rows = load_rows(shared_dir / "data/preference/oasst_en100_rankings.jsonl.gz")
    assert prepare_dataset(rows, gpt2).report.rows == 206
