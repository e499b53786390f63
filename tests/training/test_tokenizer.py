import pytest

from prefopt.training.tokenizer import (
    check_reference_tokenizer,
    check_vocabulary,
    load_tokenizer,
)
from tests.models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.runs import config


def test_eos_pads_where_nothing_else_does_and_the_model_knows(tmp_path):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.pad_token = None
    loaded = load_tokenizer(tokenizer, model, config(tmp_path))
    assert loaded.pad_token == loaded.eos_token
    assert model.config.pad_token_id == loaded.eos_token_id
    padded = load_tokenizer(tokenizer, model, config(tmp_path, pad_token="w7"))
    assert padded.pad_token == "w7"


def test_a_processor_gives_its_tokenizer(tmp_path):
    class Processor:
        tokenizer = tiny_tokenizer()

    loaded = load_tokenizer(Processor(), tiny_model("llama"), config(tmp_path))
    assert loaded is Processor.tokenizer


def test_it_is_loaded_from_where_the_model_came(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    model = tiny_model("llama")
    model.config._name_or_path = str(tmp_path)
    assert load_tokenizer(None, model, config(tmp_path)).get_vocab() == tiny_tokenizer().get_vocab()


def test_wrong_tokenizers_are_errors(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="so pass processing_class"):
        load_tokenizer(None, model, config(tmp_path))
    with pytest.raises(TypeError, match="must be a tokenizer or a processor with one, got str"):
        load_tokenizer("words", model, config(tmp_path))
    with pytest.raises(ValueError, match="pad_token 'nothing' is not in the tokenizer's vocab"):
        load_tokenizer(tiny_tokenizer(), model, config(tmp_path, pad_token="nothing"))


def test_more_tokens_than_embeddings_is_an_error():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    check_vocabulary(tokenizer, model)
    tokenizer.add_tokens([f"more{i}" for i in range(VOCABULARY)])
    with pytest.raises(ValueError, match="but the model embeds only"):
        check_vocabulary(tokenizer, model)


def test_a_reference_that_reads_other_ids_is_an_error(tmp_path):
    ours, theirs = tiny_tokenizer(), tiny_tokenizer()
    theirs.save_pretrained(tmp_path / "same")
    theirs.add_tokens(["zebra"])
    theirs.save_pretrained(tmp_path / "other")
    ours.add_tokens(["aardvark"])
    args = config(tmp_path)
    check_reference_tokenizer(str(tmp_path / "same"), tiny_tokenizer(), args)
    with pytest.raises(
        ValueError, match=r"reads other token ids than the policy: id .* 'aardvark'"
    ):
        check_reference_tokenizer(str(tmp_path / "other"), ours, args)
    (tmp_path / "bare").mkdir()
    check_reference_tokenizer(str(tmp_path / "bare"), ours, args)  # comes without a tokenizer
