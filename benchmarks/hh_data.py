"""Real preferences, split and made short enough for a small model; a tokenizer and texts to fit."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefopt.data import read_example

TRAIN_ROWS = 2000
VALIDATION_ROWS = 300  # of the 2000, to choose hyper-parameters on
PROMPT_CHARACTERS = 300
CONVERSATION_CHARACTERS = 400
VOCABULARY = 4096
HELD_OUT_SHARE = 0.25  # of the trees of OpenAssistant, and of the demo's rows

Row = dict[str, Any]


class Split(NamedTuple):
    """Rows to train on, and others to measure on; texts of the first may be fitted too."""

    train: list[Row]
    held_out: list[Row]


def read_jsonl(path: Path) -> list[Row]:
    """Return the rows of a compressed file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def hh_pairs(shared: Path, seed: int, *, validation: bool = False) -> Split:
    """Return the pairs of Anthropic HH, prompts cut to their last turns.

    Args:
        shared: Folder of the shared data.
        seed: Of the split.
        validation: Whether to split the training rows once more, to choose hyper-parameters.
    """
    rows = []
    for number, row in enumerate(
        read_jsonl(shared / "data/preference/hh_helpful_base_test.jsonl.gz")
    ):
        example = read_example(row, number)
        chosen, rejected = example.completions
        prompt = last_turns(example.prompt, PROMPT_CHARACTERS)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    random.Random(seed).shuffle(rows)
    train, held_out = rows[:TRAIN_ROWS], rows[TRAIN_ROWS:]
    if validation:
        return Split(train[:-VALIDATION_ROWS], train[-VALIDATION_ROWS:])
    return Split(train, held_out)


def last_turns(prompt: str, characters: int) -> str:
    """Return as many of the last human turns of a transcript as fit, at least one."""
    starts = [i for i in range(len(prompt)) if prompt.startswith("\n\nHuman:", i)]
    fitting = [start for start in starts if len(prompt) - start <= characters]
    return prompt[fitting[0] if fitting else starts[-1] if starts else 0 :]


def one_thumb(pairs: Sequence[Row], seed: int) -> list[Row]:
    """Return one completion of each pair with its thumb, drawn at random: the other is not seen."""
    generator = random.Random(seed)
    thumbs = []
    for pair in pairs:
        liked = generator.random() < 0.5
        completion = pair["chosen" if liked else "rejected"]
        thumbs.append({"prompt": pair["prompt"], "completion": completion, "label": liked})
    return thumbs


def rankings(shared: Path, seed: int) -> Split:
    """Return the human rankings of OpenAssistant; no tree of messages is on both sides."""
    rows = read_jsonl(shared / "data/preference/oasst_en100_rankings.jsonl.gz")
    kept = [row | {"messages": last_messages(row["messages"])} for row in rows]
    return _split(kept, seed, key=lambda row: row["tree"])


def votes(shared: Path, seed: int) -> tuple[Split, int]:
    """Return the human thumbs of OpenAssistant, and how many ties were left out."""
    rows, ties = [], 0
    for row in read_jsonl(shared / "data/preference/oasst_en100_votes.jsonl.gz"):
        if row["up"] == row["down"]:
            ties += 1
            continue
        rows.append(
            {
                "prompt": last_messages(row["messages"]),
                "completion": [{"role": "assistant", "content": row["response"]}],
                "label": row["up"] > row["down"],
                "tree": row["tree"],
            }
        )
    return _split(rows, seed, key=lambda row: row["tree"]), ties


def demo(shared: Path, seed: int) -> Split:
    """Return the conversations with two answers, judged by a model."""
    rows = read_jsonl(shared / "data/preference/dpo_en_demo.jsonl.gz")
    for number, row in enumerate(rows):
        row["conversations"] = last_messages(row["conversations"], role="from", content="value")
        row["number"] = number
    return _split(rows, seed, key=lambda row: str(row["number"]))


def last_messages(
    messages: Sequence[Row], *, role: str = "role", content: str = "content"
) -> list[Row]:
    """Return as many of the last messages as fit, at least one, the first one of the user."""
    users = [i for i, message in enumerate(messages) if message[role] in ("user", "human")]
    sizes = [sum(len(message[content]) for message in messages[i:]) for i in users]
    fitting = [i for i, size in zip(users, sizes, strict=True) if size <= CONVERSATION_CHARACTERS]
    return list(messages[fitting[0] if fitting else users[-1] :])


def _split(rows: list[Row], seed: int, key: Callable[[Row], str]) -> Split:
    keys = sorted({key(row) for row in rows})
    random.Random(seed).shuffle(keys)
    held_out = set(keys[: round(HELD_OUT_SHARE * len(keys))])
    return Split(
        [row for row in rows if key(row) not in held_out],
        [row for row in rows if key(row) in held_out],
    )


def chat_template(shared: Path, name: str = "chatml") -> str:
    """Return a chat template, without the line breaks and indents it is laid out with."""
    text = (shared / f"data/tokenizers/chat_templates/{name}.jinja").read_text()
    return text.replace("    ", "").replace("\n", "")


def corpora(shared: Path) -> list[str]:
    """Return the paragraphs of the books."""
    paragraphs = []
    for path in sorted((shared / "data/corpora").glob("*.txt.gz")):
        paragraphs += gzip.decompress(path.read_bytes()).decode().split("\n")
    return [paragraph for paragraph in paragraphs if paragraph]


def build_tokenizer(texts: Sequence[str], template: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of these texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer
