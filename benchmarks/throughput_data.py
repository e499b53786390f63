"""Rows to time on, and tokenizers that cut them into as many tokens as real ones do."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hh_data import chat_template, corpora, read_jsonl
from throughput_flops import Texts
from throughput_models import SIZES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# No BOS: TRL's ORPOTrainer would add one that its other trainers do not.
SPECIAL = ["<pad>", "</s>", "<|im_start|>", "<|im_end|>"]
GPT2_TOKENS = 50257
LONG_PROMPT = 2000
LONG_COMPLETION = 200
MAX_LENGTH = {"hh": 1024, "demo": 1024, "long": 2304}

Row = dict[str, str]


class PairSet(NamedTuple):
    """Pairs to train on, in training order.

    Attributes:
        rows: ``prompt``, ``chosen``, ``rejected`` as texts, without EOS.
        texts: The same as token ids, EOS added, nothing cut.
        max_length: Tokens of prompt + completion.
    """

    rows: list[Row]
    texts: list[Texts]
    max_length: int


def draw_pairs(name: str, shared: Path, tokenizer: Any, count: int, seed: int) -> PairSet:
    """Return random pairs whose prompts leave room for a completion.

    Args:
        name: ``hh``, ``demo`` or ``long``.
        shared: Folder of the shared data.
        tokenizer: Cuts texts into tokens.
        count: How many pairs.
        seed: Of the draw.

    Raises:
        ValueError: If there are not so many.
    """
    generator = random.Random(seed)
    if name == "long":
        rows = _long_rows(shared, tokenizer, count, generator)
    else:
        rows = {"hh": _hh_rows, "demo": _demo_rows}[name](shared)
        generator.shuffle(rows)
    kept: list[Row] = []
    texts: list[Texts] = []
    for row in rows:
        if len(kept) == count:
            break
        ids = _token_ids(row, tokenizer, MAX_LENGTH[name])
        if ids is not None:
            kept.append(row)
            texts.append(ids)
    if len(kept) < count:
        raise ValueError(f"{name} has {len(kept)} usable pairs, {count} are needed: fewer --steps")
    return PairSet(kept, texts, MAX_LENGTH[name])


def _token_ids(row: Row, tokenizer: Any, max_length: int) -> Texts | None:
    """Return a pair as trainers see it; None if they could see it differently, or not at all."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    completions = []
    for side in ("chosen", "rejected"):
        whole = tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"]
        if whole[: len(prompt)] != prompt:
            return None
        completions.append(whole[len(prompt) :])
    fits = 0 < len(prompt) < max_length and completions[0] != completions[1]
    return Texts(prompt, completions) if fits else None


def cut(text: Texts, max_length: int) -> Texts:
    """Return a pair as both trainers cut it: completions at their end."""
    room = max_length - len(text.prompt)
    completions = [completion[:room] for completion in text.completions]
    return Texts(text.prompt, completions, [other[:room] for other in text.mismatched])


def _hh_rows(shared: Path) -> list[Row]:
    rows = []
    for row in read_jsonl(shared / "data/preference/hh_helpful_base_test.jsonl.gz"):
        (prompt, chosen), (other, rejected) = (_split(row[side]) for side in ("chosen", "rejected"))
        if prompt == other:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def _split(transcript: str) -> tuple[str, str]:
    head, turn, answer = transcript.rpartition("\n\nAssistant:")
    return head + turn, answer


def _demo_rows(shared: Path) -> list[Row]:
    """Return conversations rendered with ChatML."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    rows = []
    for row in read_jsonl(shared / "data/preference/dpo_en_demo.jsonl.gz"):
        turns = [_turn(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        answers = {side: row[side]["value"] + "<|im_end|>" for side in ("chosen", "rejected")}
        rows.append({"prompt": "".join(turns) + "<|im_start|>assistant\n"} | answers)
    return rows


def _turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def _long_rows(shared: Path, tokenizer: Any, count: int, generator: random.Random) -> list[Row]:
    """Return stretches of books: a long prompt, and two places elsewhere as its completions."""
    tokens = tokenizer("\n".join(corpora(shared)))["input_ids"]

    def stretch(length: int) -> str:
        start = generator.randrange(len(tokens) - length)
        return str(tokenizer.decode(tokens[start : start + length]).strip())

    # More than asked for: a stretch may begin inside a character or a word and not fit.
    return [
        {
            "prompt": stretch(LONG_PROMPT),
            "chosen": " " + stretch(LONG_COMPLETION),
            "rejected": " " + stretch(LONG_COMPLETION),
        }
        for _ in range(count + 10)
    ]


def make_tokenizer(size: str, shared: Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer for a size of model.

    Up to 8192 tokens it is a BPE of the preference data and the books, above that GPT-2's, without
    its last merges where the vocabulary is smaller: both give the token counts of real tokenizers.
    """
    vocabulary = SIZES[size].fields["vocab_size"]
    core = _gpt2_bpe(shared, vocabulary) if vocabulary > 8192 else _own_bpe(shared, vocabulary)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template(shared)
    return tokenizer


def _byte_level(core: Tokenizer) -> Tokenizer:
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def _own_bpe(shared: Path, vocabulary: int) -> Tokenizer:
    rows = _hh_rows(shared) + _demo_rows(shared)
    core = _byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for row in rows for text in row.values()]
    core.train_from_iterator(texts + corpora(shared), trainer)
    return core


def _gpt2_bpe(shared: Path, vocabulary: int) -> Tokenizer:
    folder = shared / "data/tokenizers"
    ids = json.loads(gzip.decompress((folder / "gpt2_encoder.json.gz").read_bytes()))
    lines = gzip.decompress((folder / "gpt2_vocab.bpe.gz").read_bytes()).decode().splitlines()
    # Ids follow the order of merges; <|endoftext|>, the last, is left out.
    kept = min(vocabulary, GPT2_TOKENS - 1 + len(SPECIAL)) - len(SPECIAL)
    words = {token: index for index, token in enumerate(SPECIAL)}
    words |= {token: index + len(SPECIAL) for token, index in ids.items() if index < kept}
    merges = [tuple(line.split()) for line in lines[1:] if line]
    merges = [merge for merge in merges if "".join(merge) in words]
    core = _byte_level(Tokenizer(models.BPE(vocab=words, merges=merges)))
    core.add_special_tokens(SPECIAL)
    return core


# Rows as the two sides take them ------------------------------------------------------------------


def mismatched(texts: Sequence[Texts], batch: int) -> list[Texts]:
    """Return pairs with KTO's mismatched completions: what TRL's rotation of a batch gives.

    A batch of TRL's holds the chosen completions of all its pairs, then the rejected ones, each
    scored under the prompt after it, so no completion meets the prompt it was written for.
    """
    result = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        rows = [text.completions[0] for text in part] + [text.completions[1] for text in part]
        others = [rows[-1], *rows[:-1]]
        for place, text in enumerate(part):
            result.append(text._replace(mismatched=[others[place], others[place + len(part)]]))
    return result


def rows_for(side: str, loss: str, pairs: PairSet, batch: int) -> list[dict[str, Any]]:
    """Return the rows a side is given.

    Both get the same pairs as text. For KTO, TRL gets the thumbs of each batch's pairs; ours gets
    the pairs as token ids with the mismatched completions that TRL makes of its batch, so that both
    do the same work. The packed side gets token ids, cut.
    """
    if side == "packed-fa2":
        return [
            {"prompt_ids": list(text.prompt)}
            | dict(zip(("chosen", "rejected"), map(list, text.completions), strict=True))
            for text in (cut(text, pairs.max_length) for text in pairs.texts)
        ]
    if loss != "kto":
        return [dict(row) for row in pairs.rows]
    if side in ("prefopt", "before"):
        return [
            {
                "prompt_ids": list(text.prompt),
                "chosen_ids": list(text.completions[0]),
                "rejected_ids": list(text.completions[1]),
                "kl_completion_ids": [list(other) for other in text.mismatched],
            }
            for text in mismatched(pairs.texts, batch)
        ]
    thumbs = []
    for start in range(0, len(pairs.rows), batch):
        for name in ("chosen", "rejected"):
            for row in pairs.rows[start : start + batch]:
                thumb = {"prompt": row["prompt"], "completion": row[name]}
                thumbs.append(thumb | {"label": name == "chosen"})
    return thumbs
