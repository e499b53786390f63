"""Does DPO teach a real model human preferences? SmolLM2-135M on Anthropic HH, full and LoRA.

    python benchmarks/hh_smollm2.py --folder /tmp/hh [--device cuda] [--jobs 2]

Full fine-tuning and LoRA are compared, both by DPO from SmolLM2-135M-Instruct (``smollm2.py``). All
rows of HH helpful are dealt to two halves that share no first question. Each method is trained on
some pairs of one half and measured on the whole other half, both ways: so every row is held out.
The two ways have seeds of their own. What both do with few conversations and many epochs is the
matter of ``few_conversations.py``.

Ended at any moment, the same command goes on. The table, the numbers and the picture go to
``benchmarks/results/hh_smollm2.{md,json,png}``; the reports stay in the folder.
"""

import os
import random
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hh_data
import hh_smollm2_report
import smollm2
from datasets import Dataset
from record import ROOT
from smollm2 import Setting

from prefopt.compare import Comparison, compare
from prefopt.data import read_example

SHARED = Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))
METHODS: list[dict[str, Any]] = [
    {"name": "full", "loss_type": "dpo", "learning_rate": 1e-5},
    {
        "name": "LoRA",
        "loss_type": "dpo",
        "learning_rate": 2e-4,
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": "all-linear",
    },
]
OPTIONS: dict[str, Any] = {
    "beta": 0.1,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "max_length": 1024,
}

Row = dict[str, Any]


class Sizes(NamedTuple):
    """How much is done.

    Attributes:
        rows: Of the data, both halves together; 0 for all.
        words: Of a prompt, of which the last turns are kept; 0 for all turns.
        train: Pairs of a half to train on.
        seeds: Of each method and half.
    """

    rows: int = 0
    words: int = 0
    train: int = 400
    seeds: int = 2


def main() -> None:
    """Do what is not done yet, and write the results."""
    asked = smollm2.parser(__doc__.splitlines()[0], "hh_smollm2", sizes=4).parse_args()
    setting = smollm2.set_up(asked)
    sizes = Sizes(*asked.sizes) if asked.sizes else Sizes()
    halves = deal(sizes.rows, sizes.words)
    held_out = [on_half(asked.folder, setting, halves, half, sizes) for half in (0, 1)]
    about = {"environment": setting.about} | sizes._asdict()
    hh_smollm2_report.write(asked.results, asked.folder, held_out, about)


def on_half(
    folder: Path, setting: Setting, halves: list[list[Row]], half: int, sizes: Sizes
) -> Comparison:
    """Train on pairs of the other half, and measure on all rows of this one."""
    return compare(
        str(setting.model),
        Dataset.from_list(halves[1 - half][: sizes.train]),
        folder / f"half{half}",
        methods=METHODS,
        options=OPTIONS | setting.options,
        seeds=range(half, 2 * sizes.seeds, 2),
        eval_dataset=Dataset.from_list(halves[half]),
        validation=0,
        evaluation=evaluation(prompts=8),
        title=f"HH helpful, half {half} held out",
        resources=setting.resources,
        command="python benchmarks/hh_smollm2.py",
    )


def evaluation(prompts: int) -> dict[str, Any]:
    """Return how runs are measured, with one answer to each of so many prompts."""
    return {
        "samples_per_prompt": 1,
        "max_prompts": prompts,
        "max_new_tokens": 96,
        "temperatures": [0.7],
        "batch_size": 16,
    }


# Rows ---------------------------------------------------------------------------------------------


def deal(count: int, words: int) -> list[list[Row]]:
    """Return two halves of the rows, shuffled; rows with one first question are on one side.

    Args:
        count: How many rows, both halves together; 0 for all.
        words: Of a prompt, of which the last turns are kept; 0 for all turns.
    """
    rows = [row for row in map(_conversation, _transcripts()) if row is not None]
    random.Random(0).shuffle(rows)
    halves: list[list[Row]] = [[], []]
    for row in rows[: count or None]:
        half = zlib.crc32(row["prompt"][0]["content"].encode()) % 2
        halves[half].append(row | {"prompt": last_turns(row["prompt"], words)})
    return halves


def _transcripts() -> list[Row]:
    return hh_data.read_jsonl(SHARED / "data/preference/hh_helpful_base_test.jsonl.gz")


def _conversation(row: Row) -> Row | None:
    """Return a pair as messages; None if the answers are equal, or one is empty."""
    example = read_example(row, 0)
    chosen, rejected = example.completions
    if chosen == rejected or not (chosen.strip() and rejected.strip()):
        return None
    return {
        "prompt": messages(example.prompt),
        "chosen": [{"role": "assistant", "content": chosen.strip()}],
        "rejected": [{"role": "assistant", "content": rejected.strip()}],
    }


def messages(transcript: str) -> list[dict[str, str]]:
    """Return the turns of a transcript, which ends where the assistant is about to speak."""
    _, *parts = re.split(r"\n\n(Human|Assistant):", transcript)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[name], "content": text.strip()}
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns if turns[-1]["content"] else turns[:-1]


def last_turns(turns: list[dict[str, str]], words: int) -> list[dict[str, str]]:
    """Return the last question, and the exchanges before it that fit into so many words."""
    if not words:
        return turns
    sizes = [len(turn["content"].split()) for turn in turns]
    begins = [at for at, turn in enumerate(turns) if turn["role"] == "user"]
    return turns[next((at for at in begins if sum(sizes[at:]) <= words), begins[-1]) :]


if __name__ == "__main__":
    main()
