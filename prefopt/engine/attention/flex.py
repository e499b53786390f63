"""The ``flex`` backend: FlexAttention with a block mask, compiled, on CUDA.

One kernel per layer does what ``varlen`` kernels lack: soft-capped scores (Gemma 2), sinks
(gpt-oss), values of another width than keys (DeepSeek). Which of the 128 x 128 blocks a layer
computes follows from the segments, in numpy: torch's own ``create_block_mask`` visits every pair of
tokens. Rows are padded to whole blocks, so that one compiled kernel serves every length.

On a CPU it runs uncompiled and forward only, for tests.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.functional import pad

from prefopt.engine.attention.plan import AttentionOptions, AttentionPlan, Ints, LayerFacts
from prefopt.engine.attention.segments import attend_by_segments

BLOCK = 128
COMPILATIONS = 64  # of the kernel, in one process


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, options: AttentionOptions
) -> Tensor:
    """Attend by FlexAttention; see ``prefopt.engine.attention.plan.Attend``.

    Calls with dropout, which FlexAttention does not have, are attended to segment by segment.
    """
    if options.dropout > 0:
        return attend_by_segments(query, key, value, plan, options)
    mask = plan.prepare(make_block_mask, options.window, query.device)
    queries, keys = mask.seq_lengths
    output, normaliser = _function(query.device.type)(
        _padded(query, queries),
        _padded(key, keys),
        _padded(value, keys),
        score_mod=_softcap(options.softcap),
        block_mask=mask,
        scale=options.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        with_normaliser=options.sinks is not None,
    )
    if options.sinks is not None and normaliser is not None:
        # A sink of score s adds exp(s) to the sum of exponentials, whose logarithm this is.
        sinks = options.sinks.view(1, -1, 1)
        output = output * torch.sigmoid(normaliser - sinks)[..., None].to(output.dtype)
    return output[:, :, : query.shape[2]]


def flex_problem(
    layer: LayerFacts, dropout: bool, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return why this backend cannot attend in such a layer here, or None if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and the model is on {device.type}"
    if dtype == torch.float64:
        return "it computes in float32 at best, and the model in float64"
    if find_spec("triton") is None:
        return "it is compiled with triton, which is not installed"
    if min(layer.head_dim, layer.value_dim) < 16:
        return f"it cannot have heads of {layer.head_dim} (values of {layer.value_dim}); 16 or more"
    return "it cannot drop attention weights" if dropout else None


def _padded(tensor: Tensor, length: int) -> Tensor:
    missing = length - tensor.shape[2]
    return pad(tensor, (0, 0, 0, missing)) if missing else tensor


# The kernel -------------------------------------------------------------------------------------


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, with_normaliser: bool, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the output, and the logarithm of each query's sum of exponentials if it is wanted."""
    if not with_normaliser:
        output: Tensor = flex.flex_attention(query, key, value, **options)
        return output, None
    if _HAS_AUX:
        output, aux = flex.flex_attention(
            query, key, value, **options, return_aux=flex.AuxRequest(lse=True)
        )
        return output, aux.lse
    both: tuple[Tensor, Tensor] = flex.flex_attention(query, key, value, **options, return_lse=True)
    return both


# Before torch 2.9 the argument for the normaliser had another name, which warns since.
_HAS_AUX = "return_aux" in inspect.signature(flex.flex_attention).parameters


@cache
def _function(device: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the function, compiled for all layers and lengths."""
    return _compiled() if device == "cuda" else _attend


def _compiled(**options: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    # Beyond its limit, eight by default, dynamo compiles a function no more and runs it as it is,
    # which holds all scores at once. One process may see many models, dtypes and widths of heads.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, COMPILATIONS)
    # Not dynamic=True, which makes the scale a symbol that inductor cannot compile (torch 2.13):
    # the first row is compiled for its own length, the second for any.
    return torch.compile(_attend, **options)


@cache
def _softcap(cap: float | None) -> Callable[..., Tensor] | None:
    """Return the function that caps scores; one for each cap, since each is compiled."""
    if cap is None:
        return None

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return score_mod


# Which tokens see which --------------------------------------------------------------------------


def make_block_mask(
    plan: AttentionPlan, window: int | None, device: torch.device
) -> flex.BlockMask:
    """Return which tokens see which, with a window in tokens, in a row padded to whole blocks.

    The mask's ``seq_lengths`` are the padded numbers of queries and of keys.
    """
    partly, whole = _block_relation(plan, window)
    counts, indices = _ordered(partly, device)
    whole_counts, whole_indices = _ordered(whole, device)
    lengths = tuple(blocks * BLOCK for blocks in partly.shape)
    mask = flex.BlockMask.from_kv_blocks(
        counts,
        indices,
        whole_counts,
        whole_indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_function(plan, window, lengths, device),
        seq_lengths=(lengths[0], lengths[1]),
    )
    for part in vars(mask).values():
        if isinstance(part, Tensor):
            _changeable(part)
    return mask


def _mask_function(
    plan: AttentionPlan, window: int | None, lengths: tuple[int, ...], device: torch.device
) -> Callable[..., Tensor]:
    """Return which key a query sees, as a function of both their places in the padded row.

    One function serves all windows, with tensors whose sizes may change: dynamo would compile again
    for each new function and each new number of segments.
    """
    count, offset = len(plan.segments), plan.query_offset
    segments = np.repeat(np.arange(count), plan.lengths)
    places = np.arange(len(segments)) - plan.starts[segments] + plan.depths[segments]
    related = np.zeros((count + 1, count + 1), dtype=bool)
    for index in range(count):
        related[index, list(plan.path(index))] = True
    missing_queries = lengths[0] - len(segments) + offset
    missing_keys = lengths[1] - len(segments)
    # Positions in the text of the first and the last key that a query sees.
    newest = np.pad(places[offset:], (0, missing_queries), mode="edge")
    oldest = np.zeros_like(newest) if window is None else newest - window + 1
    # Padded queries belong to the last segment, padded keys to one more, which no query sees.
    of_query = np.pad(segments[offset:], (0, missing_queries), mode="edge")
    of_key = np.pad(segments, (0, missing_keys), constant_values=count)
    arrays = (of_query, of_key, oldest, newest, np.pad(places, (0, missing_keys)))
    segment_of_query, segment_of_key, first, last, place = (
        _changeable(_move(array.astype(np.int32), device)) for array in arrays
    )
    attends = _changeable(_move(related, device))

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = place[key]
        return (
            attends[segment_of_query[query], segment_of_key[key]]
            & (at >= first[query])
            & (at <= last[query])
        )

    return seen


def _changeable(tensor: Tensor) -> Tensor:
    for dimension in range(tensor.ndim):
        torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor


def _block_relation(
    plan: AttentionPlan, window: int | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which blocks of keys each block of queries sees in part, and which whole.

    There are two blocks at least, since dynamo compiles separately for sizes of 1. Padding counts
    as unseen, so that the mask function is called for every block with padding.
    """
    offset = plan.query_offset
    total = int(plan.starts[-1])
    shape = (max(2, -(-(total - offset) // BLOCK)), max(2, -(-total // BLOCK)))
    any_seen = np.zeros(shape, dtype=bool)
    surely_seen = np.zeros(shape, dtype=np.int64)  # pairs of tokens
    for index in range(plan.first, len(plan.segments)):
        queries = _Run.of(plan, index, offset)
        for step in plan.path(index):
            keys = _Run.of(plan, step, 0)
            some, every = _sees(queries, keys, window)
            at = np.ix_(queries.blocks, keys.blocks)
            any_seen[at] |= some
            surely_seen[at] += every * np.outer(queries.counts, keys.counts)
    filled = -(-(total - offset) // BLOCK)
    any_seen[filled:] = any_seen[filled - 1]  # padding sees what the last query sees
    whole = surely_seen == BLOCK * BLOCK
    return any_seen & ~whole, whole


def _ordered(relation: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many blocks are seen from each, and which, those first; as masks hold them."""
    order = np.argsort(~relation, axis=1, kind="stable").astype(np.int32)
    counts = relation.sum(1, dtype=np.int32)
    return _move(counts[None, None], device), _move(order[None, None], device)


@dataclass(frozen=True)
class _Run:
    """A segment cut at the borders of blocks.

    Attributes:
        blocks: The blocks that it touches.
        counts: Its tokens in each of them.
        first_places: Position, in its own text, of its first token in each of them.
    """

    blocks: Ints
    counts: Ints
    first_places: Ints

    @classmethod
    def of(cls, plan: AttentionPlan, index: int, offset: int) -> "_Run":
        """Return this of a segment, with blocks counted from the token at ``offset``."""
        start, end = (int(place) - offset for place in plan.starts[index : index + 2])
        blocks = np.arange(start // BLOCK, -(-end // BLOCK))
        firsts = np.maximum(blocks * BLOCK, start)
        counts = np.minimum((blocks + 1) * BLOCK, end) - firsts
        return cls(blocks, counts, firsts - start + plan.depths[index])

    @property
    def last_places(self) -> Ints:
        """Position of its last token in each block."""
        return self.first_places + self.counts - 1


def _sees(
    queries: _Run, keys: _Run, window: int | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return in which pairs of blocks some key is seen, and in which every key by every query."""
    farthest = queries.last_places[:, None] - keys.first_places
    nearest = queries.first_places[:, None] - keys.last_places
    if window is None:
        return farthest >= 0, nearest >= 0
    return (farthest >= 0) & (nearest < window), (nearest >= 0) & (farthest < window)


def _move(array: Any, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
