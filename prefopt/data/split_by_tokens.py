"""Cut a batch into parts of limited size, so that memory does not grow with the longest batch."""

from collections.abc import Sequence
from itertools import pairwise

from prefopt.engine.layout import Example, LayoutName
from prefopt.engine.prefix_tree import common_prefix_length


def laid_out_tokens(example: Example, layout: LayoutName) -> int:
    """Return how many tokens an example takes in a row of its own, without padding."""
    completions = example.completion_ids
    together = sum(len(completion) for completion in completions)
    if layout == "padded":
        return len(completions) * len(example.prompt_ids) + together
    common = common_prefix_length(completions)
    return len(example.prompt_ids) + together - (len(completions) - 1) * common


def split_by_tokens(sizes: Sequence[int], most: int) -> list[slice]:
    """Cut a sequence into as few parts as possible of at most ``most``, all about as large.

    Args:
        sizes: Size of each item, in order.
        most: What the sizes of a part may sum to; an item that is larger makes a part alone.

    Returns:
        The parts, in order; together they are the whole.

    Examples:
        >>> [len([4, 4, 4, 4, 4][part]) for part in split_by_tokens([4, 4, 4, 4, 4], 16)]
        [3, 2]
    """
    parts = _fill_up(sizes, most)
    # The same number of parts with a lower limit: one full part and a rest would be uneven.
    low, high = max(-(-sum(sizes) // len(parts)), 1), most
    while low < high:
        limit = (low + high) // 2
        if len(_fill_up(sizes, limit)) > len(parts):
            low = limit + 1
        else:
            high = limit
    return _fill_up(sizes, high)


def _fill_up(sizes: Sequence[int], limit: int) -> list[slice]:
    """Cut a sequence where the next item would exceed the limit."""
    borders, held = [0], 0
    for index, size in enumerate(sizes):
        if held and held + size > limit:
            borders.append(index)
            held = 0
        held += size
    borders.append(len(sizes))
    return [slice(start, stop) for start, stop in pairwise(borders)]
