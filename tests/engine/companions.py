"""Models that compute a text differently beside others, and rows that would show it."""

from typing import Any

import numpy as np
import torch
from torch import nn

from prefopt.engine.layout import Example
from tests.models import VOCABULARY, tiny_model

_WINDOW = 16  # tokens

_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}

# Rotary embeddings that change with the longest text of a forward pass.
_ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "phi3",
        {
            "original_max_position_embeddings": _WINDOW,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [1.3, 2.0, 3.5, 5.0],
                "original_max_position_embeddings": _WINDOW,
            },
        },
    ),
    "dynamic": (
        "llama",
        {
            "max_position_embeddings": _WINDOW,
            "rope_parameters": _DYNAMIC,
        },
    ),
    "dynamic, by layer": (
        "gemma3",
        {
            "max_position_embeddings": _WINDOW,
            "rope_parameters": {
                "full_attention": _DYNAMIC,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
}
WINDOWED = list(_ROPES)
COMPANIONS = [*WINDOWED, "capacity"]


class _CapacityExperts(nn.Module):
    """Two experts, each of which takes half of the tokens of a batch; the rest is dropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.flatten(0, -2)
        chosen = self.router(tokens).argmax(-1)
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            mine = torch.nonzero(chosen == number)[: len(tokens) // 2, 0]
            output = output.index_add(0, mine, expert(tokens[mine]))
        return output.view_as(hidden)


def companion(name: str, seed: int = 0) -> Any:
    """Return a tiny model whose log-probs of a text depend on the others of a batch."""
    if name in _ROPES:
        architecture, changes = _ROPES[name]
        return tiny_model(architecture, seed, **changes)
    model = tiny_model("llama", seed)
    torch.manual_seed(seed)
    for layer in model.model.layers:
        layer.mlp = _CapacityExperts(model.config.hidden_size)
        for weight in layer.mlp.parameters():
            nn.init.normal_(weight, 0, 0.2)
    return model.eval()


def uneven_examples(seed: int = 0) -> list[Example]:
    """Return examples of which some are within the window, some beyond it, and one just at it."""
    generator = np.random.default_rng(seed)

    def draw(length: int) -> Any:
        return generator.integers(3, VOCABULARY, length)

    lengths = [(4, 5, 6), (20, 15, 9), (8, 8, 9), (3, 1, 30), (10, 4, 4)]
    return [Example(draw(p), [draw(c), draw(r)]) for p, c, r in lengths]
