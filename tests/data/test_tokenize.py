"""Token ids equal TRL's, and the prompt ends where the tokens part."""

import gzip
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data import DataError, prepare_dataset, read_example
from prefopt.data.tokenize import split_prompt, tokenize, tokenize_prompts

from .conftest import TEMPLATES, Words, read_template
from .templates import CHATML, bytes_tokenizer, pair

tokens = st.lists(st.integers(0, 2), max_size=12)


def read_rows(shared, name):
    with gzip.open(shared / f"data/preference/{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def trl_rows(rows, tokenizer, max_length=None):
    """Prepare rows with TRL's own code, which needs of its trainer only the tokenizer."""
    from trl import DPOTrainer

    args = SimpleNamespace(
        dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start"
    )
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    dataset = Dataset.from_list(rows)
    return DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, args, "train")


def assert_like_trl(ours, theirs):
    assert len(ours) == len(theirs)
    for row, expected in zip(ours, theirs, strict=True):
        assert row["prompt_ids"] == expected["prompt_ids"]
        assert row["completion_ids"] == [expected["chosen_ids"], expected["rejected_ids"]]


def test_transcripts_are_tokenised_as_trl_does(shared_dir, gpt2):
    rows = read_rows(shared_dir, "hh_helpful_base_test")[:100]
    split = [read_example(row, 0) for row in rows]  # TRL would split after the last character
    explicit = [
        {"prompt": pair.prompt, "chosen": pair.completions[0], "rejected": pair.completions[1]}
        for pair in split
    ]
    prepared = prepare_dataset(Dataset.from_list(rows), gpt2, max_length=None)
    assert_like_trl(prepared.dataset, trl_rows(explicit, gpt2))
    assert prepared.report.boundary_moved == 0
    assert all(row[-1] == gpt2.eos_token_id for row in prepared.dataset[0]["completion_ids"])


def test_rows_without_room_are_those_trl_drops(shared_dir, gpt2):
    rows = read_rows(shared_dir, "hh_helpful_base_test")[:100]
    split = [read_example(row, 0) for row in rows]
    explicit = [
        {"prompt": pair.prompt, "chosen": pair.completions[0], "rejected": pair.completions[1]}
        for pair in split
    ]
    prepared = prepare_dataset(Dataset.from_list(rows), gpt2, max_length=120)
    theirs = trl_rows(explicit, gpt2, max_length=120)
    assert len(prepared.dataset) == len(theirs) < 100
    for row, expected in zip(prepared.dataset, theirs, strict=True):
        assert row["prompt_ids"] == expected["prompt_ids"]
        room = 120 - len(row["prompt_ids"])
        for ids, name in zip(row["completion_ids"], ("chosen_ids", "rejected_ids"), strict=True):
            assert ids == expected[name][:room]


def test_implicit_prompts_of_text_split_as_trl_does(gpt2):
    rows = [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "A cat sat", "rejected": "A car sat"},
        {"chosen": "One two three!", "rejected": "One two three?"},
    ]
    prepared = prepare_dataset(Dataset.from_list(rows), gpt2)
    assert_like_trl(prepared.dataset, trl_rows(rows, gpt2))


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_tokenised_as_trl_does(shared_dir, gpt2, name):
    gpt2.chat_template = read_template(shared_dir, name)
    # gpt2 has no <s>; some templates begin with it.
    gpt2.bos_token = gpt2.eos_token
    role = {"human": "user", "gpt": "assistant", "system": "system"}
    rows = []
    for row in read_rows(shared_dir, "dpo_en_demo"):
        turns = [{"role": role[t["from"]], "content": t["value"]} for t in row["conversations"]]
        if turns[0]["role"] != "system" and len(rows) < 12:
            pair = {
                key: [{"role": "assistant", "content": row[key]["value"]}]
                for key in ("chosen", "rejected")
            }
            rows.append({"prompt": turns, **pair})
    prepared = prepare_dataset(Dataset.from_list(rows), gpt2, max_length=None)
    assert_like_trl(prepared.dataset, trl_rows(rows, gpt2))


def test_tools_and_template_arguments_reach_the_template_as_in_trl(shared_dir, gpt2):
    gpt2.chat_template = (
        "{% if tools %}{{ tools[0]['function']['name'] }} {% endif %}{{ tone }}: "
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    tools = json.dumps([{"type": "function", "function": {"name": "weather"}}])
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Hello"}],
        "rejected": [{"role": "assistant", "content": "No"}],
        "tools": tools,
        "chat_template_kwargs": {"tone": "kind"},
    }
    prepared = prepare_dataset(Dataset.from_list([row]), gpt2)
    assert_like_trl(prepared.dataset, trl_rows([row], gpt2))
    first = prepared.dataset[0]
    text = gpt2.decode(first["prompt_ids"] + first["completion_ids"][0])
    assert text == "weather kind: user Hi assistant Hello "


def test_merged_tokens_move_the_boundary(gpt2):
    rows = [{"prompt": "I am the lo", "chosen": "west", "rejected": "udest"}]
    prepared = prepare_dataset(Dataset.from_list(rows), gpt2)
    assert_like_trl(prepared.dataset, trl_rows(rows, gpt2))
    first = prepared.dataset[0]
    assert gpt2.decode(first["prompt_ids"]) == "I am the"
    assert gpt2.decode(first["completion_ids"][0]) == " lowest<|endoftext|>"
    assert prepared.report.boundary_moved == 1


def test_a_special_token_at_the_start_stays_with_the_prompt(stories):
    from tokenizers.processors import TemplateProcessing

    stories.backend_tokenizer.post_processor = TemplateProcessing(
        single="[EOS] $A", special_tokens=[("[EOS]", 1)]
    )
    rows = [{"prompt": "once upon", "chosen": " a time", "rejected": " a day"}]
    prepared = prepare_dataset(Dataset.from_list(rows), stories)
    assert_like_trl(prepared.dataset, trl_rows(rows, stories))
    assert prepared.dataset[0]["prompt_ids"][0] == 1


@pytest.mark.parametrize("ending", ["", "<|endoftext|>"])
def test_text_ends_with_one_end_of_sequence_token(gpt2, ending):
    example = read_example({"prompt": "a", "completion": " b" + ending, "label": 1}, 0)
    ids = tokenize([example], [0], gpt2)[0].completion_ids[0]
    assert gpt2.decode(ids) == " b<|endoftext|>"


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("Hello", "Hello</s>"),
        ("Hello</s>", "Hello</s>"),
        ("Hello</s>\n", "Hello</s>"),
        ("Hello \n</s> </s>\n\n", "Hello \n</s>"),
        ("Hello\n", "Hello\n</s>"),
        ("Hello<|im_end|>", "Hello<|im_end|>"),
        ("Hello<|eot|>\n", "Hello<|eot|>"),
        ("Hello<|im_end|></s>", "Hello<|im_end|></s>"),
        ("Pad with <pad>", "Pad with <pad></s>"),
        ("</s>\n", "</s>"),
    ],
)
def test_a_text_that_was_rendered_before_has_one_end(answer, completion):
    tokenizer = bytes_tokenizer(eos="</s>")
    row = read_example({"prompt": "<|user|>Hi</s>\n", "completion": answer, "label": 1}, 0)
    ids = tokenize([row], [0], tokenizer)[0]
    assert tokenizer.decode(ids.completion_ids[0]) == completion
    assert tokenizer.decode(ids.prompt_ids) == "<|user|>Hi</s>\n"


@pytest.mark.parametrize("adds", ["", "<s> $A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("given", ["Hi", "<s>Hi"])
def test_every_text_has_one_beginning_and_one_end_whatever_the_tokenizer_adds(adds, given):
    tokenizer = bytes_tokenizer(eos="</s>", bos="<s>", adds=adds)
    row = read_example({"prompt": given, "chosen": " there", "rejected": " no</s>\n"}, 0)
    ids = tokenize([row], [0], tokenizer)[0]
    begins = "<s>" if "<s>" in adds + given else ""
    assert tokenizer.decode(ids.prompt_ids) == begins + "Hi"
    assert [tokenizer.decode(c) for c in ids.completion_ids] == [" there</s>", " no</s>"]
    assert not ids.unused_ids


def test_messages_get_no_special_tokens_but_those_of_the_template():
    template = "{{ bos_token }}" + CHATML
    tokenizer = bytes_tokenizer(template, bos="<s>", adds="<s> $A </s>")
    row = read_example(pair("Hi", "Hello", "No"), 0)
    text = read_example({"prompt": "Hi", "completion": " Hello", "label": 1}, 1)
    ids, plain = tokenize([row, text], [0, 1], tokenizer)
    texts = [tokenizer.decode(part) for part in (ids.prompt_ids, ids.completion_ids[0])]
    prompt = "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [prompt, "Hello<|im_end|>\n"]
    assert (
        tokenizer.decode(plain.prompt_ids + plain.completion_ids[0]) == "<s>Hi Hello<|im_end|></s>"
    )


def test_text_gets_no_end_where_the_tokenizer_has_none():
    example = read_example({"prompt": "a", "completion": " b", "label": 1}, 0)
    assert tokenize([example], [0], Words(eos_token=None))[0].completion_ids == [[1]]


def test_messages_need_a_chat_template(gpt2):
    gpt2.chat_template = None
    example = read_example({"prompt": "a", "chosen": "b", "rejected": "c"}, 3)
    assert len(tokenize([example], [3], gpt2)) == 1
    spoken = read_example({"messages": [{"role": "user", "content": "a"}], "responses": ["b"]}, 3)
    with pytest.raises(DataError, match=r"row 3: .*no chat template"):
        tokenize([spoken], [3], gpt2)


def test_what_a_template_refuses_is_told_with_its_row(shared_dir, gpt2):
    gpt2.chat_template = read_template(shared_dir, "mistral-instruct")
    rows = [
        {"prompt": [{"role": role, "content": "Hi"}], "completion": "Hello", "label": True}
        for role in ("user", "assistant")
    ]
    with pytest.raises(DataError, match=r"train data, row 1: .*must alternate"):
        prepare_dataset(Dataset.from_list(rows), gpt2)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_alone_are_rendered_as_with_answers(shared_dir, gpt2, name):
    gpt2.chat_template = read_template(shared_dir, name)
    asked = [{"role": "user", "content": "What is it?"}]
    row = {"prompt": asked, "completion": "It is well.", "label": True}
    example = read_example({**row, "completion": [{"role": "assistant", "content": "Well."}]}, 0)
    (whole,) = tokenize([example], [0], gpt2)
    expected = gpt2.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert gpt2.decode(whole.prompt_ids + whole.unused_ids) == expected
    for form in (example, replace(example, completions=[])):
        assert tokenize_prompts([form], [0], gpt2) == [whole.prompt_ids + whole.unused_ids]


def test_prompts_alone_begin_as_whole_texts_do():
    tokenizer = bytes_tokenizer(bos="<s>", adds="<s> $A")
    bos = tokenizer.bos_token_id
    for text in ("Hi", f"{tokenizer.bos_token}Hi"):
        example = read_example({"prompt": text, "completion": " you", "label": 1}, 0)
        (whole,) = tokenize([example], [0], tokenizer)
        assert tokenize_prompts([example], [0], tokenizer) == [whole.prompt_ids]
        assert whole.prompt_ids.count(bos) == 1
    assert tokenize_prompts([replace(example, prompt="")], [0], tokenizer) == [[bos]]


def test_what_a_template_leaves_out_of_a_prompt_is_an_error(gpt2):
    gpt2.chat_template = "{% for m in messages[1:] %}{{ m.content }}{% endfor %}"
    example = read_example({"prompt": [{"role": "user", "content": "a"}], "responses": ["b"]}, 4)
    with pytest.raises(DataError, match=r"row 4: the chat template leaves out"):
        tokenize_prompts([replace(example, completions=[])], [4], gpt2)


def test_text_needs_a_tokenizer():
    example = read_example({"prompt": "a", "completion": "b", "label": 1}, 5)
    with pytest.raises(DataError, match=r"row 5: .*tokenizer"):
        tokenize([example], [5], None)
    with pytest.raises(DataError, match=r"row 5: .*tokenizer"):
        tokenize_prompts([example], [5], None)


@given(tokens, st.lists(tokens, min_size=1, max_size=4))
def test_prompt_and_completion_are_the_whole_text(prompt, texts):
    split = split_prompt(prompt, texts)
    assert [split.prompt_ids + ids for ids in split.completion_ids] == texts
    assert split.prompt_ids == prompt[: len(split.prompt_ids)]
    assert split.prompt_ids + split.unused_ids == prompt
    # One token more would not be shared.
    end = len(split.prompt_ids)
    assert end == len(prompt) or any(text[end : end + 1] != [prompt[end]] for text in texts)
