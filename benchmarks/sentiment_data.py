"""The start, its samples and the pairs of the sentiment experiment; each made once.

Rows of ``../shared/data/sentiment`` are dealt to five parts that share no row:

| part | what for |
|---|---|
| fitted | the reward's weights, and the texts that the start is fine-tuned on |
| chosen_on | the reward's layer and penalty |
| shown | the reward's error |
| train | beginnings to which the start writes the answers that are compared |
| held_out | beginnings to which trained policies write |
"""

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentiment_reward
import smollm2
from datasets import Dataset
from record import ROOT

from prefopt import PreferenceConfig, PreferenceTrainer
from prefopt.evaluation.generation import generate

SHARED = Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))
SIZES = {"fitted": 6800, "chosen_on": 500, "shown": 1000, "train": 1200, "held_out": 800}
WORDS = 4  # of a beginning
SAMPLES = 4
MAX_NEW_TOKENS = 24


def parts(sizes: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each part."""
    file = SHARED / "data" / "sentiment" / "vader_movie_snippets.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    rows = [row for row in rows if len(row["text"].split()) > WORDS + 2]
    dealt, begin = {}, 0
    for name, size in sizes.items():
        dealt[name] = rows[begin : begin + size]
        begin += size
    return dealt


def beginning(row: dict[str, Any]) -> str:
    """Return the first words of a snippet.

    >>> beginning({"text": "A feel good picture in the best sense"})
    'A feel good picture'
    """
    return " ".join(row["text"].split()[:WORDS])


def make_start(folder: Path, model: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Fine-tune a model on snippets, so that it writes some of its own, as the DPO paper does."""
    texts = [
        {"prompt": beginning(row), "completion": row["text"].split(maxsplit=WORDS)[-1], "label": True}
        for row in rows
    ]
    for row in texts:
        row["completion"] = " " + row["completion"]
    config = PreferenceConfig(
        output_dir=str(folder),
        loss_type="sft",
        learning_rate=5e-5,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        num_train_epochs=1,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        seed=0,
        use_cpu=True,
    )
    trainer = PreferenceTrainer(str(model), args=config, train_dataset=Dataset.from_list(texts))
    trainer.train()
    trainer.save_model(str(folder))
