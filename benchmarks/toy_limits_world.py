"""The starts of ``toy_limits.py``: fitted to the toy language, with the best reward at each KL."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prefopt.evaluation import best_reward, generate, sample_completions
from prefopt.toy import (
    HELD_OUT_NAMES,
    build_model,
    build_tokenizer,
    fit_model,
    prompts,
    true_reward,
)

MAX_NEW_TOKENS = 32  # the longest text of the grammar has 23 words
RESAMPLES = 400  # of a bootstrap
FRONTIER_KLS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
TEMPERATURES = (0.0, 0.25, 0.7)  # below 1, which is measured anyway


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        fit_steps: Optimiser steps that fit the start to the language.
        start_samples: Samples of the start behind the frontier, for each held-out prompt.
        policy_samples: Samples of a policy, for each of them.
        scale: Factor on the numbers of pairs of all recipes.
    """

    fit_steps: int = 400
    start_samples: int = 8192
    policy_samples: int = 500
    scale: float = 1.0


class World:
    """A start, and what its samples are worth. Kept in a folder, so that it is made once.

    Args:
        seed: Of weights, texts and samples.
        hidden_size: Width of the model.
        size: How much is computed.
        folder: Where it is kept.

    Attributes:
        start: The reference of all recipes.
        tokenizer: Of all models.
        rewards: True rewards of the start's samples; (held-out prompts, samples), points.
        frontier: The best gain at some KLs, from ``frontier_of``.
        temperatures: Mean true reward of the start's samples by temperature.
    """

    def __init__(self, seed: int, hidden_size: int, size: Size, folder: Path) -> None:
        self.seed, self.size = seed, size
        self.tokenizer = build_tokenizer()
        self.start = build_model(self.tokenizer, hidden_size=hidden_size, seed=seed)
        self.prompts = prompts(HELD_OUT_NAMES)
        path = folder / f"world-{digest(seed, hidden_size, asdict(size))}.pt"
        if not path.exists():
            self._make(path)
        made = torch.load(path)
        self.start.load_state_dict(made["weights"])
        self.start.eval()
        self.rewards: torch.Tensor = made["rewards"]
        self.frontier: dict[str, Any] = made["frontier"]
        self.temperatures: dict[str, float] = made["temperatures"]

    def sample(self, model: Any, asked: Sequence[str], seed: int) -> list[list[int]]:
        """Return token ids of a completion of each prompt, by the model at temperature 1."""
        return sample_completions(
            model,
            self.encode(asked),
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=self.tokenizer.eos_token_id,
            batch_size=2048,
            seed=seed,
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids, without an end."""
        ids: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        return ids

    def decode(self, completions: list[list[int]]) -> list[str]:
        """Return completions as the grammar writes them."""
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [" " + text for text in texts]

    def by_temperature(self, model: Any) -> dict[str, float]:
        """Return the mean true reward of a model's answers at each temperature, in points."""
        means = {}
        for temperature in TEMPERATURES:
            answers = generate(
                model,
                self.tokenizer,
                self.prompts,
                temperature=temperature,
                max_new_tokens=MAX_NEW_TOKENS,
                samples=max(1, self.size.policy_samples // 10) if temperature else 1,
                batch_size=512,
                progress=False,
            )
            rewards = [true_reward(answer.text) for answer in answers]
            means[str(temperature)] = sum(rewards) / len(rewards)
        return means

    def _make(self, path: Path) -> None:
        fit_model(self.start, self.tokenizer, steps=self.size.fit_steps, seed=self.seed)
        rewards = []
        for index, prompt in enumerate(self.prompts):
            seed = 7919 * (index + 1) + self.seed
            texts = self.decode(self.sample(self.start, [prompt] * self.size.start_samples, seed))
            rewards.append([true_reward(text) for text in texts])
        made = {
            "weights": self.start.state_dict(),
            "rewards": torch.tensor(rewards),
            "frontier": frontier_of(torch.tensor(rewards)),
            "temperatures": self.by_temperature(self.start),
        }
        write_whole(path, lambda part: torch.save(made, part))


def frontier_of(rewards: torch.Tensor) -> dict[str, Any]:
    """Return ``kls`` and the best gain in reward at each, ``[value, low, high]``, in points."""
    start = rewards.mean().item()
    points = [best_reward(rewards, kl, resamples=RESAMPLES) for kl in FRONTIER_KLS]
    gains = [[end - start for end in point[:3]] for point in points]
    return {"kls": FRONTIER_KLS, "gains": gains, "start": start}


def digest(*parts: Any) -> str:
    """Return a short name for these values."""
    text = json.dumps(parts, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    write(part)
    part.replace(path)
