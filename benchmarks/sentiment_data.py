"""The start, its answers and the pairs of the sentiment experiment; each is made once.

Rows of ``../shared/data/sentiment`` are dealt to parts that share none:

| part | what for |
|---|---|
| fitted | the reward's weights, and the snippets that the start is fine-tuned on |
| chosen_on | the reward's layer and penalty |
| shown | the reward's error |
| train | beginnings that the start continues; its continuations are compared |
| held_out | the same, for measuring: trained policies continue these |
"""

import csv
import gzip
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from record import ROOT

from prefopt import PreferenceConfig, PreferenceTrainer
from prefopt.evaluation import generate
from prefopt.evaluation.loading import load_for_inference

SHARED = Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))
WORDS = 4  # of a beginning
MAX_NEW_TOKENS = 24  # the mean snippet has 19 words

Row = dict[str, Any]
Reward = Callable[[Sequence[str], Sequence[str]], list[float]]


class Sizes(NamedTuple):
    """Rows of each part, and what is made of them.

    Attributes:
        fitted: Snippets to fit the reward and the start to.
        chosen_on: Snippets to choose the reward's layer and penalty on.
        shown: Snippets to show the reward's error on.
        train: Beginnings that become training pairs.
        held_out: Beginnings that become held-out pairs.
        samples: Continuations of each beginning: half as many pairs.
    """

    fitted: int = 4000
    chosen_on: int = 500
    shown: int = 1000
    train: int = 256
    held_out: int = 160
    samples: int = 4


def parts(sizes: Sizes) -> dict[str, list[Row]]:
    """Return the rows of each part."""
    file = SHARED / "data" / "sentiment" / "vader_movie_snippets.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if len(row["text"].split()) > WORDS + 2]
    random.Random(0).shuffle(rows)
    dealt, begin = {}, 0
    for name in ("fitted", "chosen_on", "shown", "train", "held_out"):
        size = getattr(sizes, name)
        dealt[name] = rows[begin : begin + size]
        begin += size
    return dealt


def divided(row: Row) -> tuple[str, str]:
    """Return the first words of a snippet, and the rest.

    >>> divided({"text": "A feel good picture in the best sense"})
    ('A feel good picture', ' in the best sense')
    """
    words = row["text"].split()
    return " ".join(words[:WORDS]), " " + " ".join(words[WORDS:])


def make_start(folder: Path, model: Path, rows: Sequence[Row], options: dict[str, Any]) -> None:
    """Fine-tune a model on snippets, so that it writes some of its own, as the DPO paper does.

    Args:
        folder: Where to save it.
        model: The model.
        rows: The snippets.
        options: Of training, for the device.
    """
    texts = [dict(zip(("prompt", "completion"), divided(row), strict=True)) for row in rows]
    config = PreferenceConfig(
        output_dir=str(folder),
        loss_type="sft",
        learning_rate=5e-5,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        num_train_epochs=1,
        logging_steps=0.05,
        save_strategy="no",
        report_to="none",
        seed=0,
        **options,
    )
    dataset = Dataset.from_list([text | {"label": True} for text in texts])
    trainer = PreferenceTrainer(str(model), args=config, train_dataset=dataset)
    trainer.train()
    trainer.save_model(str(folder))


def make_pairs(
    start: Path, rows: Sequence[Row], samples: int, reward: Reward, seed: int
) -> list[Row]:
    """Return pairs of the start's own continuations, the one of higher reward chosen.

    Args:
        start: The model that continues.
        rows: Snippets; their beginnings are continued.
        samples: Continuations of each beginning: half as many pairs, which share none.
        reward: Decides.
        seed: Of the continuations.
    """
    prompts = [divided(row)[0] for row in rows]
    written = generate(
        *load_for_inference(str(start)),
        prompts,
        max_new_tokens=MAX_NEW_TOKENS,
        samples=samples,
        seed=seed,
        batch_size=64,
    )
    asked = [prompt for prompt in prompts for _ in range(samples)]
    texts = [answer.text for answer in written]
    scored = list(zip(asked, texts, reward(asked, texts), strict=True))
    pairs = []
    for (prompt, one, first), (_, two, second) in zip(scored[::2], scored[1::2], strict=True):
        if first == second:  # the same text twice
            continue
        chosen, rejected = (one, two) if first > second else (two, one)
        rewards = {"reward_chosen": max(first, second), "reward_rejected": min(first, second)}
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **rewards})
    return pairs


def published() -> dict[str, list[tuple[float, float, float]]]:
    """Return what others reached on IMDb: beta, mean reward and mean KL, by loss.

    The controlled sentiment of DiscoPOP (Lu et al. 2024, arXiv:2406.08414): GPT-2, a classifier's
    probability as the reward, ten samplings of one run for each beta. Their KL is a mean over
    tokens, those of the prompt included, from the reference to the policy: it orders points, but
    its values are not those of a KL of whole answers from the policy to the reference.
    """
    names = {"dpo": "dpo", "hinge": "slic-hf / hinge", "lrml": "discopop"}
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    with (SHARED / "data" / "reference" / "discopop_imdb_results.csv").open() as lines:
        for row in csv.DictReader(lines):
            if row["loss"] in names and row["reward"]:  # some runs diverged
                key = (names[row["loss"]], float(row["beta"]))
                measured = (float(row["reward"]), float(row["kl_divergence"]))
                found.setdefault(key, []).append(measured)
    table: dict[str, list[tuple[float, float, float]]] = {}
    for (loss, beta), points in sorted(found.items()):
        rewards, distances = zip(*points, strict=True)
        mean = (sum(rewards) / len(points), sum(distances) / len(points))
        table.setdefault(loss, []).append((beta, *mean))
    return table
