"""A fitted start of the toy world, its rows as files, and its true reward as a function."""

import json

import pytest
import torch

from prefopt.toy import build_model, build_tokenizer, fit_model, sample_pairs

REWARD = """
from prefopt.toy import true_reward


def reward(prompts, completions):
    return [true_reward(text) for text in completions]
"""


@pytest.fixture(scope="session")
def fitted_start(tmp_path_factory) -> str:
    """Folder of a toy model that speaks the language, roughly."""
    folder = tmp_path_factory.mktemp("fitted")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = fit_model(build_model(tokenizer, hidden_size=32), tokenizer, steps=120)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory) -> dict[str, str]:
    """Files of rows to train on and held out, and of the reward."""
    folder = tmp_path_factory.mktemp("files")
    found = {"reward": f"{folder / 'rewards.py'}:reward"}
    (folder / "rewards.py").write_text(REWARD)
    for seed, (name, count) in enumerate((("train", 600), ("held_out", 100))):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in sample_pairs(count, seed=seed)))
        found[name] = str(path)
    return found
