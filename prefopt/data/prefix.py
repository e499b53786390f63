"""How far two sequences begin alike."""

from collections.abc import Sequence
from typing import Any

__all__ = ["shared_length"]


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many leading tokens, or characters, two sequences share.

    >>> shared_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    shared = min(len(first), len(second))
    if first[:shared] == second[:shared]:
        return shared
    low = 0  # the first `low` tokens are shared, the first `shared` are not
    while shared - low > 1:
        middle = (low + shared) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            shared = middle
    return low
