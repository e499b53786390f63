"""Where answers end: what the tokenizer, the model and the chat template say."""

import json

from datasets import Dataset
from transformers import GenerationConfig

from prefopt.data import prepare_dataset
from prefopt.data.ends import end_tokens, stop_tokens
from tests.models import tiny_tokenizer

from .conftest import Words
from .templates import CHATML, TAGS, bytes_tokenizer, pair

IM_END, EOS = "<|im_end|>", "</s>"
ANSWERED = "{% for m in messages %}w3 {{ m['content'] }} <unk> {% endfor %}"


def test_stop_tokens_are_eos_and_those_of_the_generation_config(tmp_path):
    tokenizer = bytes_tokenizer(CHATML.replace("<|im_end|>\n", "<|im_end|>"), eos=EOS)
    eos, turn = TAGS.index(EOS), TAGS.index(IM_END)
    assert stop_tokens(tokenizer) == [eos]
    tokenizer.name_or_path = str(tmp_path)
    assert stop_tokens(tokenizer) == [eos]
    for ids in (turn, [turn, eos]):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        assert stop_tokens(tokenizer) == [eos, turn]
    rows = Dataset.from_list([pair("Hi", "Hello", "Go away")])
    assert prepare_dataset(rows, tokenizer).report.remarks == {}
    assert stop_tokens(Words()) == stop_tokens(None) == []


def test_ends_are_those_of_model_tokenizer_and_template(tmp_path):
    tokenizer, config = tiny_tokenizer(), GenerationConfig(eos_token_id=[7, 9])
    assert end_tokens(tokenizer, None) == [2]
    assert end_tokens(tokenizer, config) == [2, 7, 9]
    tokenizer.chat_template = ANSWERED  # puts <unk>, which is special, behind an answer
    assert end_tokens(tokenizer, config) == [1, 2, 7, 9]
    tokenizer.chat_template = ANSWERED.replace("<unk>", "w50")
    assert end_tokens(tokenizer, config) == [2, 7, 9]
    GenerationConfig(eos_token_id=[30, 31]).save_pretrained(tmp_path)
    tokenizer.name_or_path = str(tmp_path)
    assert end_tokens(tokenizer, config) == [2, 7, 9, 30, 31]
