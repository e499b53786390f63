"""How answers are drawn from a model, and what one is."""

import math
from typing import NamedTuple

__all__ = ["Generation", "Sampling"]


class Generation(NamedTuple):
    """One answer.

    Attributes:
        text: What was said, without special tokens.
        token_ids: Its tokens, with the token that ends it.
        tokens: How many these are.
        truncated: Whether it has no end: it was cut at the longest length allowed.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: int
    truncated: bool


class Sampling(NamedTuple):
    """How answers are drawn.

    Attributes:
        temperature: What logits are divided by; 0 takes the most likely token each time.
        max_new_tokens: Most tokens of an answer.
        samples: Answers to each prompt.
        seed: Of the random numbers.
        top_p: Least probability that the tokens drawn from have together; 1 for all tokens.
        top_k: Most tokens drawn from; 0 for all.
    """

    temperature: float = 1.0
    max_new_tokens: int = 256
    samples: int = 1
    seed: int = 0
    top_p: float = 1.0
    top_k: int = 0

    def check(self) -> None:
        """Raise where a setting is out of its range.

        Raises:
            ValueError: Naming it.
        """
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        least = {"max_new_tokens": 1, "samples": 1, "seed": 0, "top_k": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
