"""Lay out a batch of examples in rows of tokens: index arithmetic, no model.

An example is a prompt with N completions. Two layouts hold it:

``shared_prefix``
    All examples of the batch in one row, without padding. What the completions of an example have
    in common (the prompt, and the tokens with which they all start) is in the row once, as a
    *segment*; the rest of each completion is a segment of its own, a *branch* that attends to the
    shared segment and to itself. Positions continue from the shared segment in every branch.
    Some of the completions, and texts of different examples, share what they have in common if it
    is long enough (``prefix_tree.LEAST_SHARED``): a system prompt, a question asked twice.

``padded``
    One row per completion: prompt, completion, padding. For models that cannot share prefixes.

Both leave out the last token of a completion, since nothing is predicted from it. Both describe the
predictions in the same way, so that scoring need not distinguish them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.engine.prefix_tree import LEAST_SHARED, Node, common_length, common_prefix_length, root
from prefopt.records import TensorRecord

LayoutName = Literal["shared_prefix", "padded"]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """A prompt with its completions, as token ids.

    Attributes:
        prompt_ids: Tokens of the prompt; (p,).
        completion_ids: Tokens of each completion; N arrays of (n_i,).
        completion_masks: Which tokens of each completion count; N arrays of (n_i,), or None for
            all.
    """

    prompt_ids: Ints
    completion_ids: Sequence[Ints]
    completion_masks: Sequence[Bools] | None = None

    def texts(self) -> list[Ints]:
        """Return the prompt with each completion; N arrays of (p + n_i,)."""
        return [np.concatenate([self.prompt_ids, completion]) for completion in self.completion_ids]

    def counted(self, completion: int) -> Bools:
        """Return which tokens of a completion are scored; (n_i,).

        Those its mask counts, less the first token of a text, which nothing predicts.
        """
        length = len(self.completion_ids[completion])
        if self.completion_masks is None:
            mask = np.ones(length, dtype=bool)
        else:
            mask = np.array(self.completion_masks[completion], dtype=bool)
        if len(self.prompt_ids) == 0 and length:
            mask[0] = False
        return mask

    def counted_masks(self) -> list[Bools]:
        """Return which tokens of each completion are scored; N arrays of (n_i,)."""
        return [self.counted(completion) for completion in range(len(self.completion_ids))]


@dataclass(frozen=True)
class Segment:
    """A run of tokens of the packed row.

    Attributes:
        length: Number of tokens.
        ancestors: Indices of the segments it attends to besides itself, root first.
    """

    length: int
    ancestors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout(TensorRecord):
    """A batch laid out for one forward pass; N completions over all examples, in order.

    Attributes:
        input_ids: Tokens; (R, T), R = 1 for ``shared_prefix``.
        position_ids: Position of each token within its own prompt + completion; (R, T).
        attention_mask: True for tokens, False for padding; (R, T). None for ``shared_prefix``.
        segments: The runs of the packed row, in row order. Empty for ``padded``.
        predict_positions: Flat positions (into R * T) whose hidden states predict a token; (M,).
        target_ids: The token each of them predicts; (M,).
        token_index: For each scored token of each completion its place among the M; (L,), L >= M:
            a token that several completions share is predicted once and counted for each of them.
        completion_index: The completion that each of the L tokens belongs to; (L,), ascending.
        lengths: Scored tokens of each completion; (N,).
        hidden_positions: Flat positions whose last hidden states are used, by this row or its
            continuation; ascending.
        sequence_tokens: Tokens of all prompts + completions counted separately, as a padded batch
            without its padding would hold them.
        prompt_lengths: Tokens of the prompt in each padded row; (R,). None in packed rows.
        last_ids: The last token of each padded row's text, which is left out; (R,). None in packed
            rows.
        inverse_lengths: For each token of a packed row 1 over the length of its text, the mean over
            the texts that share it; (1, T). None in padded rows.
        continuation: More completions of the same prompts, laid out in a row of their own which
            attends to this one. Its segments are numbered after this row's, and positions that
            predict count this row's tokens first. None without such completions.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segment, ...]
    predict_positions: Tensor
    target_ids: Tensor
    token_index: Tensor
    completion_index: Tensor
    lengths: Tensor
    hidden_positions: Tensor
    sequence_tokens: int
    prompt_lengths: Tensor | None = None
    last_ids: Tensor | None = None
    inverse_lengths: Tensor | None = None
    continuation: "Layout | None" = None

    @property
    def name(self) -> LayoutName:
        """Which layout it is."""
        return "shared_prefix" if self.attention_mask is None else "padded"


def in_padded_rows(row: Layout) -> Layout:
    """Return a packed row as padded ones: for another model, which cannot share prefixes.

    Predictions and their order stay, and the device; a continuation is left out.
    """
    segments = row.segments
    starts = np.cumsum([0, *(segment.length for segment in segments)])
    ids, depths = (it.flatten().cpu().numpy() for it in (row.input_ids, row.position_ids))
    positions = row.predict_positions.cpu().numpy()
    token_index, completions = row.token_index.cpu().numpy(), row.completion_index.cpu().numpy()

    def text_to(position: int) -> Ints:
        """Return the text that ends at a position of the row."""
        last = int(np.searchsorted(starts, position, "right")) - 1
        parts = [ids[starts[one] : starts[one + 1]] for one in segments[last].ancestors]
        return np.concatenate([*parts, ids[starts[last] : position + 1]])

    ends = np.flatnonzero(np.diff(completions, append=-1))  # the last token of each completion
    texts = [text_to(positions[token_index[end]]) for end in ends]
    row_of = np.zeros(len(row.lengths), dtype=np.int64)
    row_of[completions[ends]] = np.arange(len(ends))
    input_ids, attention_mask = _in_rows(texts, 0)
    # What several completions share is predicted once: in the text of the first of them.
    _, first = np.unique(token_index, return_index=True)
    predict_positions = row_of[completions[first]] * input_ids.shape[1] + depths[positions]
    device = row.input_ids.device
    return replace(
        row,
        input_ids=torch.from_numpy(input_ids).to(device),
        position_ids=torch.arange(input_ids.shape[1], device=device).expand(input_ids.shape),
        attention_mask=torch.from_numpy(attention_mask).to(device),
        segments=(),
        predict_positions=torch.from_numpy(predict_positions).to(device),
        hidden_positions=torch.from_numpy(np.unique(predict_positions)).to(device),
        inverse_lengths=None,
        continuation=None,
    )


def build_layout(
    examples: Sequence[Example],
    mode: LayoutName = "shared_prefix",
    *,
    pad_token_id: int = 0,
    continued: Sequence[Example] | None = None,
    least_shared: int = LEAST_SHARED,
) -> Layout:
    """Lay out a batch of examples.

    Args:
        examples: Examples, each with at least one completion; none for a process without rows.
        mode: ``"shared_prefix"`` or ``"padded"``.
        pad_token_id: Token that fills rows of the ``padded`` layout; never attended to.
        continued: For each example one with the same prompt, whose completions become the layout's
            ``continuation``: scored later, from the prompts of this row. Only ``shared_prefix``.
            None for no continuation.
        least_shared: Tokens that texts must have in common to share them. What all completions of
            an example have in common is shared whatever its length.

    Returns:
        The layout, on the CPU.

    Raises:
        ValueError: If an example has no completion, ``mode`` is unknown, or ``continued`` does not
            fit.
    """
    if not all(len(example.completion_ids) for example in examples):
        raise ValueError("each example of a layout needs at least one completion")
    if mode == "padded":
        if continued is not None:
            raise ValueError("rows of the padded layout cannot be continued")
        return _padded(examples, pad_token_id)
    if mode != "shared_prefix":
        raise ValueError(f"layout must be 'shared_prefix' or 'padded', got {mode!r}")
    if continued is not None and len(continued) != len(examples):
        raise ValueError(f"{len(examples)} examples cannot be continued by {len(continued)}")
    return _shared_prefix(examples, continued, least_shared)


def _prediction_fields(completions: Sequence[tuple[Ints, Ints]]) -> dict[str, Any]:
    """Return the fields of a layout; what several completions share is predicted once.

    Each completion has the positions that predict its scored tokens, and these tokens; (n,) both.
    """
    lengths = np.array([len(targets) for _, targets in completions], dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    positions = np.concatenate([nothing, *(its for its, _ in completions)])
    targets = np.concatenate([nothing, *(its for _, its in completions)])
    radix = int(targets.max(initial=0)) + 1
    distinct, token_index = np.unique(positions * radix + targets, return_inverse=True)
    arrays = {
        "predict_positions": distinct // radix,
        "hidden_positions": np.unique(distinct // radix),
        "target_ids": distinct % radix,
        "token_index": token_index.reshape(-1),
        "completion_index": np.repeat(np.arange(len(lengths)), lengths),
        "lengths": lengths,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Text(NamedTuple):
    """A completion in the tree; ``end`` is the node of its last token but one."""

    prompt_length: int
    completion: Ints
    counted: Bools
    end: Node

    @property
    def length(self) -> int:
        """Its tokens, with those of the prompt."""
        return self.prompt_length + len(self.completion)

    def predicted(self) -> tuple[Ints, Ints]:
        """Return the position that predicts each scored token, when the nodes have been placed."""
        counted = np.flatnonzero(self.counted)
        if len(counted) == 0:
            return counted, counted
        # Places of the text in the row, from the one that predicts its first scored token.
        first = self.prompt_length + int(counted[0]) - 1
        places = np.concatenate(
            [
                np.arange(node.start + max(first - node.depth, 0), node.start + len(node.tokens))
                for node in self.end.path()
                if node.end > first
            ]
        )
        return places[self.prompt_length + counted - 1 - first], self.completion[counted]


def _shared_prefix(
    examples: Sequence[Example], continued: Sequence[Example] | None, least_shared: int
) -> Layout:
    tree = root()
    grown = [_grow(tree, example, least_shared) for example in examples]
    texts = [text for same_prompt in grown for text in same_prompt]
    later = [
        text
        for same_prompt, other in zip(grown, continued or (), strict=bool(continued))
        for text in _continue(same_prompt, other, least_shared)
    ]
    own = {node for text in texts for node in text.end.path()}
    nodes = list(tree.walk())[1:]
    row = _place(node for node in nodes if node in own)
    layout = _lay_out(row, texts)
    if continued is None:
        return layout
    others = (node for node in nodes if node not in own)
    next_row = _place(others, layout.input_ids.numel(), len(row))
    return _continued(layout, _lay_out(next_row, later))


def _continued(layout: Layout, continuation: Layout) -> Layout:
    """Join a row and its continuation, whose predictions are made at positions of both."""
    tokens, positions = layout.input_ids.numel(), continuation.hidden_positions
    own = np.union1d(layout.hidden_positions, positions[positions < tokens])
    later = positions[positions >= tokens] - tokens
    return replace(
        layout,
        hidden_positions=torch.from_numpy(own),
        continuation=replace(continuation, hidden_positions=later),
    )


def _grow(tree: Node, example: Example, least_shared: int) -> list[_Text]:
    """Add the texts of an example to the tree; what all of them have in common is one node.

    The last token of a text is left out unless another text continues from it: nothing is predicted
    there.
    """
    completions = example.completion_ids
    common = common_prefix_length(completions)
    if all(len(completion) == common for completion in completions):
        common = max(common - 1, 0)
    prefix = tree.add(np.concatenate([example.prompt_ids, completions[0][:common]]), least_shared)
    return [
        _Text(
            len(example.prompt_ids),
            completion,
            example.counted(index),
            prefix.add(completion[common:-1], least_shared),
        )
        for index, completion in enumerate(completions)
    ]


def _continue(texts: Sequence[_Text], example: Example, least_shared: int) -> list[_Text]:
    """Add further completions of a prompt below its texts in the tree."""
    prompt_length = len(example.prompt_ids)
    later = []
    for index, completion in enumerate(example.completion_ids):
        start = completion[:-1]
        common = [common_length(text.completion[:-1], start) for text in texts]
        nearest = int(np.argmax(common))
        at = _branch_off(texts[nearest].end, prompt_length, common[nearest], least_shared)
        end = at.add(start[at.end - prompt_length :], least_shared)
        later.append(_Text(prompt_length, completion, example.counted(index), end))
    return later


def _branch_off(end: Node, prompt_length: int, common: int, least_shared: int) -> Node:
    """Return the node to branch off from a text with which ``common`` tokens of it are shared.

    The last node with shared tokens is split where the texts begin to differ, if ``least_shared``
    of its completion tokens are shared. Else the branch starts at its parent, or, if the prompt
    ends within the node, there.
    """
    parting = prompt_length + common
    node = end
    while node.parent is not None and node.depth >= parting:
        node = node.parent
    if node.end == parting:
        return node
    if parting - max(node.depth, prompt_length) >= least_shared:
        return node.split(parting - node.depth, least_shared)
    if node.depth >= prompt_length:
        assert node.parent is not None
        return node.parent
    return node.split(prompt_length - node.depth, least_shared)


def _place(nodes: Iterable[Node], tokens: int = 0, segments: int = 0) -> list[Node]:
    """Place nodes one after another in a row, parents first, from given counts on."""
    placed = []
    for node in nodes:
        node.start, node.index = tokens, segments
        tokens, segments = tokens + len(node.tokens), segments + 1
        placed.append(node)
    return placed


def _lay_out(row: Sequence[Node], texts: Sequence[_Text]) -> Layout:
    nothing = np.zeros(0, dtype=np.int64)
    positions = [np.arange(node.depth, node.end) for node in row]
    return Layout(
        input_ids=torch.from_numpy(np.concatenate([nothing, *(node.tokens for node in row)]))[None],
        position_ids=torch.from_numpy(np.concatenate([nothing, *positions]))[None],
        attention_mask=None,
        segments=tuple(
            Segment(len(node.tokens), tuple(step.index for step in node.path()[:-1]))
            for node in row
        ),
        sequence_tokens=sum(text.length for text in texts),
        inverse_lengths=torch.from_numpy(_inverse_lengths(row, texts))[None],
        **_prediction_fields([text.predicted() for text in texts]),
    )


def _inverse_lengths(row: Sequence[Node], texts: Sequence[_Text]) -> NDArray[np.float32]:
    """Return for each token of a row the mean of 1 / length over the texts it is part of; (T,)."""
    of_nodes: dict[Node, list[float]] = {node: [] for node in row}
    for text in texts:
        for node in text.end.path():
            if node in of_nodes:
                of_nodes[node].append(1 / text.length)
    means = np.array([np.mean(shares) for shares in of_nodes.values()], dtype=np.float32)
    return np.repeat(means, np.array([len(node.tokens) for node in row], dtype=np.int64))


def _padded(examples: Sequence[Example], pad_token_id: int) -> Layout:
    texts = [text for example in examples for text in example.texts()]
    input_ids, attention_mask = _in_rows([text[:-1] for text in texts], pad_token_id)
    width = input_ids.shape[1]
    numbers = np.array([len(example.completion_ids) for example in examples], dtype=np.int64)
    lengths = np.array([len(example.prompt_ids) for example in examples], dtype=np.int64)
    prompts = np.repeat(lengths, numbers)
    last = np.array([text[-1] if len(text) else pad_token_id for text in texts], dtype=np.int64)
    predicted: list[tuple[Ints, Ints]] = []
    for example in examples:
        for index, completion in enumerate(example.completion_ids):
            counted = np.flatnonzero(example.counted(index))
            start = len(predicted) * width + len(example.prompt_ids)
            predicted.append((start + counted - 1, completion[counted]))
    return Layout(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.arange(width).repeat(len(input_ids), 1),
        attention_mask=torch.from_numpy(attention_mask),
        segments=(),
        sequence_tokens=sum(map(len, texts)),
        prompt_lengths=torch.from_numpy(prompts),
        last_ids=torch.from_numpy(last),
        **_prediction_fields(predicted),
    )


def _in_rows(texts: Sequence[Ints], pad_token_id: int) -> tuple[Ints, Bools]:
    """Return texts as rows of one width, and where their tokens are; (R, T) both."""
    width = max(map(len, texts), default=0)
    input_ids = np.full((len(texts), width), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(texts), width), dtype=bool)
    for row, text in enumerate(texts):
        input_ids[row, : len(text)] = text
        attention_mask[row, : len(text)] = True
    return input_ids, attention_mask
