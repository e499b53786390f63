import json

import pytest
from datasets import Dataset
from transformers import CLIPImageProcessor, LlavaProcessor

from prefopt.training.tokenizer import (
    check_reference_tokenizer,
    check_vocabulary,
    load_tokenizer,
)
from tests.models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.runs import config, trainer


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


# Templates ----------------------------------------------------------------------------------------

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }} <eos>{% endfor %}"
OTHER = "{% for m in messages %}{{ m.content }} <eos>{% endfor %}"
MESSAGES = [{"role": "user", "content": "w3"}]


def processor(template, of_tokenizer=None):
    """Return a processor of images and text with a template of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = of_tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return LlavaProcessor(CLIPImageProcessor(), tokenizer, chat_template=template)


def roomy_model(**changes):
    return tiny_model("llama", vocab_size=VOCABULARY + 7, **changes)


@pytest.mark.parametrize("of_tokenizer", [None, OTHER])
@pytest.mark.parametrize("template", [PLAIN, {"default": PLAIN, "tool_use": OTHER}])
def test_the_template_of_a_processor_is_used_and_its_tokenizer_left_alone(
    tmp_path, template, of_tokenizer
):
    given = processor(template, of_tokenizer)
    tokenizer = load_tokenizer(given, roomy_model(), config(tmp_path))
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "user: w3 <eos>"
    assert given.tokenizer.chat_template == of_tokenizer
    assert given.chat_template == template


def test_a_processor_without_a_template_has_that_of_its_tokenizer(tmp_path):
    given = processor(None, OTHER)
    assert load_tokenizer(given, roomy_model(), config(tmp_path)) is given.tokenizer


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "processor_config"])
def test_a_template_in_a_file_of_the_processor_is_found(tmp_path, file):
    processor(None).tokenizer.save_pretrained(tmp_path)
    if file.endswith("jinja"):
        (tmp_path / file).write_text(PLAIN)
    else:
        name = file.removesuffix(".json") + ".json"
        (tmp_path / name).write_text(json.dumps({"chat_template": PLAIN}))
    model = roomy_model()
    model.config._name_or_path = str(tmp_path)
    tokenizer = load_tokenizer(None, model, config(tmp_path))
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "user: w3 <eos>"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == PLAIN


def test_named_templates_in_a_file_of_the_processor_are_found(tmp_path):
    processor(None).tokenizer.save_pretrained(tmp_path)
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": OTHER}]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": named}))
    model = roomy_model()
    model.config._name_or_path = str(tmp_path)
    found = load_tokenizer(None, model, config(tmp_path)).chat_template
    assert found == {"default": PLAIN, "tool_use": OTHER}


def test_a_processor_is_saved_as_it_was_given(tmp_path):
    rows = Dataset.from_list(
        [
            {"prompt": MESSAGES, **{k: [{"role": "assistant", "content": v}] for k, v in pair}}
            for pair in [(("chosen", f"w{i}"), ("rejected", "w9")) for i in range(10, 14)]
        ]
    )
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    made = trainer(tmp_path, rows, roomy_model(), processing_class=processor(PLAIN), **options)
    made.train()
    made.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert (folder / "chat_template.jinja").read_text() == PLAIN
        assert (folder / "processor_config.json").is_file()
        loaded = LlavaProcessor.from_pretrained(folder)
        assert loaded.chat_template == PLAIN


# Adapters -----------------------------------------------------------------------------------------


def test_the_tokenizer_of_an_adapter_goes_before_that_of_its_base_model(tmp_path):
    base, own = tiny_tokenizer(), tiny_tokenizer()
    own.chat_template = PLAIN
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    model = tiny_model("llama")
    model.config._name_or_path = str(tmp_path / "base")
    named = (None, model, config(tmp_path), str(tmp_path / "adapter"))
    assert load_tokenizer(*named).chat_template is None
    own.save_pretrained(tmp_path / "adapter")
    assert load_tokenizer(*named).chat_template == PLAIN


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
