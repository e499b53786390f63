"""Tokenizers made of the shared data, without a download."""

import gzip
from pathlib import Path

import pytest
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

TEMPLATES = (
    "alpaca",
    "chatml",
    "gemma-it",
    "llama-3-instruct",
    "mistral-instruct",
    "qwen2.5-instruct",
    "vicuna",
    "zephyr",
)


def read_template(shared: Path, name: str) -> str:
    """Return a chat template, without the line breaks and indents it is laid out with."""
    text = (shared / f"data/tokenizers/chat_templates/{name}.jinja").read_text()
    return text.replace("    ", "").replace("\n", "")


@pytest.fixture(scope="session")
def gpt2_folder(shared_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    for source, target in (
        ("gpt2_encoder.json.gz", "vocab.json"),
        ("gpt2_vocab.bpe.gz", "merges.txt"),
    ):
        content = gzip.decompress((shared_dir / "data/tokenizers" / source).read_bytes())
        (folder / target).write_bytes(content)
    return folder


@pytest.fixture
def gpt2(gpt2_folder, shared_dir):
    """GPT-2's tokenizer with the chatml template."""
    tokenizer = GPT2Tokenizer(
        vocab=str(gpt2_folder / "vocab.json"), merges=str(gpt2_folder / "merges.txt")
    )
    tokenizer.chat_template = read_template(shared_dir, "chatml")
    return tokenizer


@pytest.fixture
def stories(shared_dir, tmp_path):
    """A lower-casing tokenizer of 4096 tokens."""
    content = (shared_dir / "data/tokenizers/simplestories-4096.tokenizer.json.gz").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(content))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="[EOS]", unk_token="[UNK]"
    )


class Words:
    """A tokenizer of words: small ids in the order they are met, and a template to read."""

    def __init__(self, eos_token=" ."):
        self.eos_token = eos_token
        self.chat_template = "role: content"
        self.vocabulary = {}

    def __call__(self, text, **options):
        return {"input_ids": [[self.id_of(word) for word in item.split()] for item in text]}

    def id_of(self, word):
        return self.vocabulary.setdefault(word, len(self.vocabulary))

    def apply_chat_template(self, conversation, *, add_generation_prompt=False, **options):
        parts = [f"{turn['role']}: {turn['content']}" for turn in conversation]
        parts += ["assistant:"] if add_generation_prompt else []
        return " ".join(parts)


@pytest.fixture
def words():
    return Words()
