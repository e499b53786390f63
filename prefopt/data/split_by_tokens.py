"""Splits a batch into parts with a limited number of tokens, which bounds the memory of a step."""

from collections.abc import Sequence
from itertools import pairwise

from prefopt.engine.layout import Example, LayoutName
from prefopt.engine.prefix_tree import common_prefix_length


def laid_out_tokens(example: Example, layout: LayoutName) -> int:
    """Return how many tokens an example takes in a row of its own, without padding."""
    completions = example.completion_ids
    tokens = sum(len(completion) for completion in completions)
    if layout == "padded":
        return len(completions) * len(example.prompt_ids) + tokens
    common = common_prefix_length(completions)
    return len(example.prompt_ids) + tokens - (len(completions) - 1) * common


def split_by_tokens(sizes: Sequence[int], most: int) -> list[slice]:
    """Split a sequence into as few parts as possible, all of about the same size.

    A part's sizes add up to ``most`` at most; a larger item is a part by itself.

    Examples:
        >>> [len([4, 4, 4, 4, 4][part]) for part in split_by_tokens([4, 4, 4, 4, 4], 16)]
        [3, 2]
    """
    parts = _fill_up(sizes, most)
    # The lowest limit that needs no more parts: full parts and a small rest would be uneven.
    low, high = max(-(-sum(sizes) // len(parts)), 1), most
    while low < high:
        limit = (low + high) // 2
        if len(_fill_up(sizes, limit)) > len(parts):
            low = limit + 1
        else:
            high = limit
    return _fill_up(sizes, high)


def _fill_up(sizes: Sequence[int], limit: int) -> list[slice]:
    """Split a sequence where the next item would exceed the limit."""
    borders, filled = [0], 0
    for index, size in enumerate(sizes):
        if filled and filled + size > limit:
            borders.append(index)
            filled = 0
        filled += size
    borders.append(len(sizes))
    return [slice(start, stop) for start, stop in pairwise(borders)]
