"""Where every token of a batch stands: index arithmetic, no model.

An example is a prompt with N completions. Two layouts hold it:

``shared_prefix``
    All examples of the batch in one row, without padding. What the completions of an example have
    in common (the prompt, and beyond it as far as they start alike) stands there once, as a
    *segment*; the rest of each completion is a segment of its own, a *branch* that attends to the
    shared segment and to itself. Positions continue from the shared segment in every branch.

``padded``
    One row per completion: prompt, completion, padding. For what cannot share (state-space layers).

Both leave out the last token of a completion, since nothing is predicted from it, and both describe
the predictions alike, so that scoring does not know which layout it scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
class Layout:
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
        sequence_tokens: Tokens of all prompts + completions counted separately, as a padded batch
            without its padding would hold them.
    """

    input_ids: Ints
    position_ids: Ints
    attention_mask: Bools | None
    segments: tuple[Segment, ...]
    predict_positions: Ints
    target_ids: Ints
    token_index: Ints
    completion_index: Ints
    lengths: Ints
    sequence_tokens: int


def common_prefix_length(sequences: Sequence[Ints]) -> int:
    """Return how many leading tokens all sequences have in common.

    >>> common_prefix_length([np.array([1, 2, 3]), np.array([1, 2, 4, 5])])
    2
    >>> common_prefix_length([np.array([7, 8])])
    2
    """
    first = sequences[0]
    shared = min(len(sequence) for sequence in sequences)
    for sequence in sequences[1:]:
        differs = np.flatnonzero(first[:shared] != sequence[:shared])
        if differs.size:
            shared = int(differs[0])
    return shared


def build_layout(
    examples: Sequence[Example],
    mode: LayoutName = "shared_prefix",
    *,
    pad_token_id: int = 0,
) -> Layout:
    """Lay out a batch of examples.

    Args:
        examples: At least one example, each with at least one completion.
        mode: ``"shared_prefix"`` or ``"padded"``.
        pad_token_id: Token that fills rows of the ``padded`` layout; never attended to.

    Returns:
        The layout, as numpy arrays.

    Raises:
        ValueError: If there is no example, an example has no completion, or ``mode`` is unknown.
    """
    if not examples or not all(len(example.completion_ids) for example in examples):
        raise ValueError("a layout needs at least one example, and each a completion")
    if mode == "shared_prefix":
        return _shared_prefix(examples)
    if mode == "padded":
        return _padded(examples, pad_token_id)
    raise ValueError(f"layout must be 'shared_prefix' or 'padded', got {mode!r}")


class _Predictions:
    """Collects which position predicts which token for which completion."""

    def __init__(self) -> None:
        self.positions: list[Ints] = []
        self.targets: list[Ints] = []
        self.token_index: list[Ints] = []
        self.lengths: list[int] = []
        self.count = 0

    def predict(self, positions: Ints, targets: Ints) -> Ints:
        """Add predictions and return their places among all of them."""
        self.positions.append(positions)
        self.targets.append(targets)
        start, self.count = self.count, self.count + len(positions)
        return np.arange(start, self.count)

    def complete(self, *places: Ints) -> None:
        """Close a completion whose scored tokens are predicted at these places."""
        self.token_index.extend(places)
        self.lengths.append(sum(map(len, places)))

    def arrays(self) -> dict[str, Ints]:
        lengths = np.array(self.lengths, dtype=np.int64)
        return {
            "predict_positions": np.concatenate(self.positions),
            "target_ids": np.concatenate(self.targets),
            "token_index": np.concatenate(self.token_index),
            "completion_index": np.repeat(np.arange(len(lengths)), lengths),
            "lengths": lengths,
        }


def _shared_prefix(examples: Sequence[Example]) -> Layout:
    row: list[Ints] = []
    positions: list[Ints] = []
    segments: list[Segment] = []
    predictions = _Predictions()
    filled = 0

    def place(tokens: Ints, first_position: int, ancestors: tuple[int, ...]) -> int:
        """Append a segment and return where it starts in the row."""
        nonlocal filled
        if len(tokens):
            row.append(tokens)
            positions.append(np.arange(first_position, first_position + len(tokens)))
            segments.append(Segment(len(tokens), ancestors))
        start, filled = filled, filled + len(tokens)
        return start

    for example in examples:
        completions = example.completion_ids
        prompt_length = len(example.prompt_ids)
        shared = common_prefix_length(completions)
        # Where every completion ends with the shared part, nothing is predicted from its last
        # token.
        ends_here = all(len(completion) == shared for completion in completions)
        prefix = np.concatenate([example.prompt_ids, completions[0][:shared]])
        prefix = prefix[:-1] if ends_here else prefix
        start = place(prefix, 0, ())
        root = (len(segments) - 1,) if len(prefix) else ()

        masks = [example.counted(index) for index in range(len(completions))]
        shared_mask = np.logical_or.reduce([mask[:shared] for mask in masks])
        scored = np.flatnonzero(shared_mask)
        shared_places = np.full(shared, -1)
        shared_places[scored] = predictions.predict(
            start + prompt_length + scored - 1, completions[0][scored]
        )
        for completion, mask in zip(completions, masks, strict=True):
            branch_start = place(completion[shared:-1], prompt_length + shared, root)
            own = shared + np.flatnonzero(mask[shared:])
            # The first token of a branch is predicted by the last shared one.
            at = branch_start + own - shared - 1
            at[own == shared] = start + prompt_length + shared - 1
            places = predictions.predict(at, completion[own])
            predictions.complete(shared_places[np.flatnonzero(mask[:shared])], places)

    return Layout(
        input_ids=np.concatenate(row)[None] if row else np.zeros((1, 0), dtype=np.int64),
        position_ids=np.concatenate(positions)[None] if row else np.zeros((1, 0), dtype=np.int64),
        attention_mask=None,
        segments=tuple(segments),
        sequence_tokens=_sequence_tokens(examples),
        **predictions.arrays(),
    )


def _padded(examples: Sequence[Example], pad_token_id: int) -> Layout:
    texts = [
        np.concatenate([example.prompt_ids, completion])
        for example in examples
        for completion in example.completion_ids
    ]
    width = max(len(text) - 1 for text in texts)
    input_ids = np.full((len(texts), width), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(texts), width), dtype=bool)
    predictions = _Predictions()
    row = 0
    for example in examples:
        prompt_length = len(example.prompt_ids)
        for index, completion in enumerate(example.completion_ids):
            text = texts[row]
            input_ids[row, : len(text) - 1] = text[:-1]
            attention_mask[row, : len(text) - 1] = True
            scored = np.flatnonzero(example.counted(index))
            at = row * width + prompt_length + scored - 1
            predictions.complete(predictions.predict(at, completion[scored]))
            row += 1
    return Layout(
        input_ids=input_ids,
        position_ids=np.broadcast_to(np.arange(width), input_ids.shape).copy(),
        attention_mask=attention_mask,
        segments=(),
        sequence_tokens=_sequence_tokens(examples),
        **predictions.arrays(),
    )


def _sequence_tokens(examples: Sequence[Example]) -> int:
    return sum(
        len(example.prompt_ids) + len(completion)
        for example in examples
        for completion in example.completion_ids
    )
