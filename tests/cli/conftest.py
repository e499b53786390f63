"""A tiny model on disk, data files of each kind, and the command line in this process."""

import gzip
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from prefopt.cli import main


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def prefopt(capsys):
    """Run a command line in this process: ``prefopt("losses", "--json")``."""

    def run(*argv: object) -> Result:
        code = main([str(item) for item in argv])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """Folder of a tiny random Llama with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: index for index, word in enumerate(["<pad>", "</s>", *letters])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,  # a block of 4-bit weights is that wide
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSON lines, compressed if the name ends in .gz."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture(scope="session")
def data_files(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind of data, by kind; 24 rows each."""
    from prefopt.toy import sample_pairs, sample_unpaired

    folder = tmp_path_factory.mktemp("data")
    pairs = sample_pairs(24)
    ranked = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "ranks": [0, 1]}
        for row in pairs
    ]
    return {
        "paired": write_rows(folder / "pairs.jsonl.gz", pairs),
        "unpaired": write_rows(folder / "unpaired.jsonl", sample_unpaired(24)),
        "ranked": write_rows(folder / "ranked.jsonl", ranked),
    }
