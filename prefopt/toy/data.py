"""Data sets of the toy world: texts to fit, preference pairs, and unpaired rows with a label.

Rows are plain dictionaries in the formats that ``prefopt.data`` reads, and depend on nothing but
the arguments: the same seed gives the same rows on every machine.
"""

import random
from collections.abc import Sequence
from typing import Any

from prefopt.toy.grammar import NAMES, prompts, sample_completion
from prefopt.toy.reward import preference_probability, true_reward

Row = dict[str, Any]

__all__ = ["sample_pairs", "sample_texts", "sample_unpaired"]


def sample_texts(count: int, *, seed: int = 0, names: Sequence[str] = NAMES) -> list[Row]:
    """Return texts from the grammar: rows with ``prompt`` and ``completion``.

    Args:
        count: Number of rows.
        seed: Of the generator.
        names: Names the prompts may be about.
    """
    rng = random.Random(f"texts {seed}")
    choices = prompts(names)
    rows: list[Row] = []
    for _ in range(count):
        prompt = rng.choice(choices)
        rows.append({"prompt": prompt, "completion": sample_completion(prompt, rng)})
    return rows


def sample_pairs(count: int, *, seed: int = 0, names: Sequence[str] = NAMES) -> list[Row]:
    """Return preference pairs, judged by Bradley and Terry's rule.

    Both completions are drawn from the grammar; they always differ.

    Args:
        count: Number of pairs.
        seed: Of the generator.
        names: Names the prompts may be about.

    Returns:
        Rows with ``prompt``, ``chosen``, ``rejected``, and the true rewards of both in points,
        ``reward_chosen`` and ``reward_rejected``, which no trainer reads.
    """
    rng = random.Random(f"pairs {seed}")
    choices = prompts(names)
    rows: list[Row] = []
    while len(rows) < count:
        prompt = rng.choice(choices)
        chosen, rejected = sample_completion(prompt, rng), sample_completion(prompt, rng)
        if chosen == rejected:
            continue
        if rng.random() >= preference_probability(true_reward(chosen), true_reward(rejected)):
            chosen, rejected = rejected, chosen
        rows.append(
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "reward_chosen": true_reward(chosen),
                "reward_rejected": true_reward(rejected),
            }
        )
    return rows


def sample_unpaired(
    count: int, *, seed: int = 0, names: Sequence[str] = NAMES, threshold: float = 0.0
) -> list[Row]:
    """Return unpaired rows; a label is True with probability sigmoid(reward - threshold).

    Args:
        count: Number of rows.
        seed: Of the generator.
        names: Names the prompts may be about.
        threshold: Reward at which either label is as likely, in points.

    Returns:
        Rows with ``prompt``, ``completion``, ``label`` and the true ``reward`` in points.
    """
    rng = random.Random(f"thumbs {seed}")  # another word would draw other labels
    rows: list[Row] = []
    for text in sample_texts(count, seed=seed, names=names):
        reward = true_reward(text["completion"])
        label = rng.random() < preference_probability(reward, threshold)
        rows.append({**text, "label": label, "reward": reward})
    return rows
