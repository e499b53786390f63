"""A reward for sentiment, fitted to human ratings: linear in the hidden states of a model.

The ratings are those of movie snippets in ``../shared/data/sentiment``: the mean of 15 to 29 people
on a scale from -4 to 4. A text's features are the means, over its tokens, of the hidden states of
SmolLM2 after one layer; ridge regression maps them to the rating. The layer and the penalty are
chosen on rows that are not fitted, and the error is shown on rows that neither step has seen.

``prefopt eval --reward benchmarks/sentiment_reward.py:reward`` finds the folder that ``fit`` wrote
in the environment variable ``SENTIMENT_REWARD``.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefopt.evaluation.loading import load_for_inference

DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)  # shares of the model's layers
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)


class HiddenMeans:
    """Means of a model's hidden states over the tokens of texts.

    Args:
        folder: The model.

    Attributes:
        depth: Layers of the model.
    """

    def __init__(self, folder: str | Path) -> None:
        model, self.tokenizer = load_for_inference(str(folder))
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:  # transformers 5.17 finds none in the GGUF
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = model.model
        self.depth = self.model.config.num_hidden_layers

    @torch.no_grad()
    def of(self, texts: Sequence[str], layers: Sequence[int], batch_size: int = 64) -> Tensor:
        """Return the means after some layers; (B, layers, hidden), float32."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        means: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[place] or " " for place in places], return_tensors="pt", padding=True
            ).to(self.model.device)
            mask = batch["attention_mask"][..., None]
            states = self.model(**batch, output_hidden_states=True).hidden_states
            picked = [(states[layer] * mask).sum(1) / mask.sum(1) for layer in layers]
            for place, row in zip(places, torch.stack(picked, 1), strict=True):
                means[place] = row.cpu()
        return torch.stack(means)


def fit(
    folder: Path, model: Path, fitted: Sequence[Any], chosen_on: Sequence[Any], shown: Sequence[Any]
) -> dict[str, Any]:
    """Fit the reward and save it; return its error on rows that it has not seen.

    Args:
        folder: Where to save it.
        model: The language model whose hidden states are its features.
        fitted: Rows with ``text`` and ``mean`` to fit the weights to.
        chosen_on: Others, to choose layer and penalty.
        shown: Others, for the error.
    """
    features = HiddenMeans(model)
    layers = [round(share * features.depth) for share in DEPTHS]
    parts = [
        features.of([row["text"] for row in part], layers) for part in (fitted, chosen_on, shown)
    ]
    ratings = [
        torch.tensor([row["mean"] for row in part]).double() for part in (fitted, chosen_on, shown)
    ]
    trials = []
    for number, layer in enumerate(layers):
        for penalty in PENALTIES:
            weights = _ridge(parts[0][:, number], ratings[0], penalty)
            error = _error(weights, parts[1][:, number], ratings[1])["rmse"]
            trials.append((error, number, layer, penalty, weights))
    _, number, layer, penalty, weights = min(trials, key=lambda trial: trial[0])
    record = {
        "layer": layer,
        "penalty": penalty,
        "model": str(model.resolve()),
        "rows": [len(part) for part in parts],
        **_error(weights, parts[2][:, number], ratings[2]),
        "spread_of_ratings": ratings[2].std().item(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weights": weights}, folder / "weights.safetensors")
    (folder / "reward.json").write_text(json.dumps(record, indent=1))
    return record


def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the fitted rating of each text: a prompt and its completion, joined."""
    features, layer, weights = _loaded(os.environ["SENTIMENT_REWARD"])
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return _predicted(weights, features.of(texts, (layer,))[:, 0]).tolist()


@cache
def _loaded(folder: str) -> tuple[HiddenMeans, int, Tensor]:
    record = json.loads((Path(folder) / "reward.json").read_text())
    weights = load_file(Path(folder) / "weights.safetensors")["weights"]
    return HiddenMeans(record["model"]), record["layer"], weights


def _ridge(features: Tensor, ratings: Tensor, penalty: float) -> Tensor:
    """Return weights of the features and a constant, which is not penalised; (hidden + 1,)."""
    inputs = _with_one(features)
    ridge = penalty * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    ridge[-1, -1] = 0
    return torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ ratings)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.double)], 1)


def _predicted(weights: Tensor, features: Tensor) -> Tensor:
    return _with_one(features) @ weights


def _error(weights: Tensor, features: Tensor, ratings: Tensor) -> dict[str, float]:
    """Return root mean square error, correlation, and share of ratings whose sign is right."""
    predicted = _predicted(weights, features)
    pairs = torch.stack([predicted, ratings])
    return {
        "rmse": (predicted - ratings).square().mean().sqrt().item(),
        "correlation": torch.corrcoef(pairs)[0, 1].item(),
        "sign": (predicted.sign() == ratings.sign()).double().mean().item(),
    }
