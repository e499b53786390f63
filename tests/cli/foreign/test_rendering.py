"""A conversion as text: the YAML can be read again, and says what became of each key."""

import yaml

from prefopt.cli.foreign import convert
from prefopt.cli.foreign.rendering import render, summary

THEIRS = {
    "base_model": "m",
    "rl": "kto",
    "datasets": [{"path": "d.jsonl", "type": "llama3.intel"}],
    "learning_rate": 1e-6,
    "chat_template": "llama3",
    "sample_packing": False,
    "relora": True,
}


def test_the_text_is_our_yaml_with_comments():
    made = convert(THEIRS, "x.yml")
    text = render(made, "x.yml")
    assert yaml.safe_load(text) == {**made.options, "not_converted": {"relora": True}}
    assert "loss_type: kto  # rl\n" in text
    assert "optim: adamw_torch_fused  # the default of Axolotl\n" in text
    assert "# chat_template: differs: the chat template is the tokenizer's own here\n" in text
    assert "#   sample_packing: False: Axolotl does not use it with rl\n" in text
    assert "  relora: true  # use LoRA instead\n" in text
    assert all(key in text for key in THEIRS)


def test_every_key_that_is_given_is_in_the_text():
    made = convert(THEIRS, "x.yml")
    said = {key for line in made.lines for key in line.keys}
    assert said == set(THEIRS)


def test_the_summary_names_loss_and_differences():
    said = summary(convert(THEIRS, "x.yml"), "x.yml")
    assert said.startswith("x.yml is a file of Axolotl: loss_type kto, beta 0.1")
    assert "differs: chat_template: llama3: the chat template is the tokenizer's own" in said
