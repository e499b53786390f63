"""Optimisers that train at another point than the one that they have found.

A schedule-free optimiser (Defazio et al. 2024, arXiv:2405.15682) takes gradients at a point between
its last step and the mean of all, and that mean is its result: what is evaluated and saved. It
moves the weights to the one or the other when it is told to.
"""

from typing import Any

__all__ = ["to_result", "to_training_point"]


def to_result(optimizer: Any) -> None:
    """Have the weights be what an optimiser has found, if it tells that from where it trains."""
    _tell(optimizer, "eval")


def to_training_point(optimizer: Any) -> None:
    """Have the weights be where an optimiser takes gradients."""
    _tell(optimizer, "train")


def _tell(optimizer: Any, name: str) -> None:
    method = getattr(optimizer, name, None)
    if callable(method):
        method()
