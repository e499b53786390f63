"""From prepared rows to a batch: laid-out tokens, views of them for losses, cached references."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data.prepared import completion_key
from prefopt.data.split_by_tokens import laid_out_tokens, split_by_tokens
from prefopt.data.views import views_of
from prefopt.engine.layout import Example, Layout, LayoutName, build_layout
from prefopt.engine.score import layout_tensors

Row = Mapping[str, Any]


class ReferenceLookup(Protocol):
    """Serves reference log-probs of completions that were scored before."""

    def get(
        self, prompt_ids: NDArray[np.int64], completion_ids: NDArray[np.int64]
    ) -> NDArray[np.float32] | None:
        """Return the log-prob of each token of the completion; (n,), or None if not known."""


class PreferenceCollator:
    """Makes a batch of prepared rows.

    Args:
        layout: How the tokens are laid out.
        pad_token_id: Filler of the padded layout.
        reference: Where reference log-probs are looked up; None if none are served.
        mismatched: What becomes of the mismatched completions of KTO: ``"separate"`` gives them a
            row of their own (key ``kl``), ``"continued"`` one that continues the row of the batch
            (key ``continuation``) where a batch is one part; None leaves them out.
        max_tokens: Tokens that a row may hold; a batch with more is cut into parts. A single
            example is never cut.
        by_kind: Whether losses look at the rows of one kind each.

    Raises:
        KeyError: When called, if a row lacks a column of prepared data.
    """

    def __init__(
        self,
        layout: LayoutName = "shared_prefix",
        pad_token_id: int = 0,
        reference: ReferenceLookup | None = None,
        mismatched: Literal["separate", "continued"] | None = None,
        max_tokens: int | None = None,
        by_kind: bool = False,
    ) -> None:
        self.layout = layout
        self.pad_token_id = pad_token_id
        self.reference = reference
        self.mismatched = mismatched
        self.max_tokens = max_tokens
        self.by_kind = by_kind

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the batch of the rows, as tensors by name; ``parts_of`` gives its parts."""
        examples = [_example(row) for row in rows]
        parts = self._parts(examples)
        if len(parts) == 1:
            return self._part(rows, examples, alone=True)
        return {"parts": [self._part(rows[part], examples[part]) for part in parts]}

    def _parts(self, examples: Sequence[Example]) -> list[slice]:
        if self.max_tokens is None:
            return [slice(0, len(examples))]
        sizes = [laid_out_tokens(example, self.layout) for example in examples]
        return split_by_tokens(sizes, self.max_tokens)

    def _part(
        self, rows: Sequence[Row], examples: Sequence[Example], alone: bool = False
    ) -> dict[str, Any]:
        continued = alone and self.mismatched == "continued"
        others = [_mismatched(row) for row in rows] if self.mismatched else []
        batch = self._lay_out(examples, others if continued else ())
        batch |= views_of(rows, self.by_kind)
        batch["examples"] = torch.tensor(len(rows))
        if others and not continued:
            batch["kl"] = self._lay_out(others)
        return batch

    def _lay_out(
        self, examples: Sequence[Example], continued: Sequence[Example] = ()
    ) -> dict[str, Any]:
        layout = build_layout(
            examples, self.layout, pad_token_id=self.pad_token_id, continued=continued
        )
        batch = self._tensors(layout, examples)
        if layout.continuation is not None:
            batch["continuation"] = self._tensors(layout.continuation, continued)
        return batch

    def _tensors(self, layout: Layout, examples: Sequence[Example]) -> dict[str, Any]:
        batch = layout_tensors(layout)
        batch["sequence_tokens"] = torch.tensor(layout.sequence_tokens)
        if self.reference is not None:
            served = _reference_logps(self.reference, examples)
            if served is not None:
                batch["ref_per_token_logps"] = torch.from_numpy(served)
            else:
                batch["unknown"] = self._unknown(examples)
        return batch

    def _unknown(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return what a live reference needs to score completions so that a store can keep them.

        Masks are no part of what is kept, so all tokens are scored; ``selected`` (L,) are those
        that this batch counts.
        """
        whole = [Example(example.prompt_ids, example.completion_ids) for example in examples]
        batch = layout_tensors(build_layout(whole, self.layout, pad_token_id=self.pad_token_id))
        texts = [
            (example, plain, index)
            for example, plain in zip(examples, whole, strict=True)
            for index in range(len(plain.completion_ids))
        ]
        keys = [
            completion_key(plain.prompt_ids, plain.completion_ids[index])
            for _, plain, index in texts
        ]
        selected = [example.counted(index)[plain.counted(index)] for example, plain, index in texts]
        sizes = [len(plain.completion_ids[index]) for _, plain, index in texts]
        joined = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
        batch["keys"] = torch.from_numpy(joined.copy())
        batch["selected"] = torch.from_numpy(np.concatenate(selected))
        batch["whole_lengths"] = torch.tensor(sizes)
        return batch


def parts_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a batch; it is its only one unless it was too large for one row."""
    parts: list[dict[str, Any]] = batch.get("parts", [batch])
    return parts


def _example(row: Row) -> Example:
    masks = row.get("completion_masks")
    return Example(
        prompt_ids=np.asarray(row["prompt_ids"], dtype=np.int64),
        completion_ids=[np.asarray(ids, dtype=np.int64) for ids in row["completion_ids"]],
        completion_masks=[np.asarray(mask, dtype=bool) for mask in masks] if masks else None,
    )


def _mismatched(row: Row) -> Example:
    return Example(
        prompt_ids=np.asarray(row["prompt_ids"], dtype=np.int64),
        completion_ids=[np.asarray(ids, dtype=np.int64) for ids in row["kl_completion_ids"]],
    )


def _reference_logps(
    reference: ReferenceLookup, examples: Sequence[Example]
) -> NDArray[np.float32] | None:
    """Return reference log-probs of all scored tokens; (L,), None if a completion is unknown."""
    parts = []
    for example in examples:
        for index, completion in enumerate(example.completion_ids):
            logps = reference.get(example.prompt_ids, completion)
            if logps is None:
                return None
            parts.append(logps[example.counted(index)])
    return np.concatenate(parts)
