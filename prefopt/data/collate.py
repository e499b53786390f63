"""From prepared rows to batches: laid-out tokens, and how the completions are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prefopt.batch import Batch, SourceRow, Texts
from prefopt.data.index import index_of
from prefopt.data.prepared import Row
from prefopt.data.split_by_tokens import laid_out_tokens, split_by_tokens
from prefopt.engine.layout import Example, LayoutName, build_layout

# Under this name the batches stand in the dictionary that transformers hands on.
BATCHES = "batches"
# Under this, what it counts: the tokens of all of them.
TOKENS = "input_ids"


def batches_of(collated: Any) -> list[Batch]:
    """Return the batches that a collator made.

    Raises:
        TypeError: If it made something else.
    """
    if not isinstance(collated, Mapping) or BATCHES not in collated:
        raise TypeError(
            "data_collator must return what prefopt.data.PreferenceCollator does, a dictionary "
            f"with {BATCHES!r}, got {type(collated).__name__}"
        )
    return list(collated[BATCHES])


@dataclass(frozen=True)
class PreferenceCollator:
    """Makes batches of prepared rows.

    Args:
        layout: How the tokens are laid out.
        pad_token_id: Filler of the padded layout.
        mismatched: What becomes of the mismatched completions of KTO: ``"separate"`` gives them a
            row of their own, ``"continued"`` one that continues the row of the batch where all rows
            make one batch; None leaves them out.
        max_tokens: Tokens that a batch may hold; rows with more make several. A single example is
            never cut.
        by_kind: Whether losses look at the rows of one kind each.
        max_rows: Rows that a batch may hold, in the same way as ``max_tokens``.

    Raises:
        KeyError: When called, if a row lacks a column of prepared data.
    """

    layout: LayoutName = "shared_prefix"
    pad_token_id: int = 0
    mismatched: Literal["separate", "continued"] | None = None
    max_tokens: int | None = None
    by_kind: bool = False
    max_rows: int | None = None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the batches of the rows, in a dictionary since transformers hands on no other."""
        batches = self.batches(rows)
        return {BATCHES: batches, TOKENS: torch.cat([_tokens(batch) for batch in batches])[None]}

    def batches(self, rows: Sequence[Row]) -> list[Batch]:
        """Return the batches of the rows: one, or as many as ``max_tokens`` asks for."""
        examples = [_example(row) for row in rows]
        parts = self._parts(examples)
        return [self._batch(rows[part], examples[part], alone=len(parts) == 1) for part in parts]

    def _parts(self, examples: Sequence[Example]) -> list[slice]:
        parts = [slice(0, len(examples))]
        if self.max_tokens is not None:
            sizes = [laid_out_tokens(example, self.layout) for example in examples]
            parts = split_by_tokens(sizes, self.max_tokens)
        if self.max_rows is None:
            return parts
        return [
            slice(part.start + its.start, part.start + its.stop)
            for part in parts
            for its in split_by_tokens([1] * (part.stop - part.start), self.max_rows)
        ]

    def _batch(self, rows: Sequence[Row], examples: Sequence[Example], alone: bool) -> Batch:
        index = index_of(rows, self.by_kind)
        sources = tuple(
            SourceRow(row.get("prefopt_row"), row.get("prefopt_dataset")) for row in rows
        )
        if self.mismatched is None:
            return Batch(self._texts(examples), index, rows=sources)
        others = [_mismatched_example(row) for row in rows]
        some = tuple(example for example in others if example.completion_ids)
        if not (alone and self.mismatched == "continued"):
            return Batch(self._texts(examples), index, self._texts(some), sources)
        texts = self._texts(examples, continued=others)
        assert texts.tokens.continuation is not None  # laid out with it
        return Batch(texts, index, Texts(texts.tokens.continuation, some), sources)

    def _texts(
        self, examples: Sequence[Example], continued: Sequence[Example] | None = None
    ) -> Texts:
        layout = build_layout(
            examples, self.layout, pad_token_id=self.pad_token_id, continued=continued
        )
        return Texts(layout, tuple(examples))


def _tokens(batch: Batch) -> Tensor:
    """Return the tokens that the model is given, without padding; (T,)."""
    tokens = batch.texts.tokens
    ids, mask = tokens.input_ids, tokens.attention_mask
    return ids.flatten() if mask is None else ids[mask]


def _example(row: Row) -> Example:
    masks = row.get("completion_masks")
    return Example(
        prompt_ids=np.asarray(row["prompt_ids"], dtype=np.int64),
        completion_ids=[np.asarray(ids, dtype=np.int64) for ids in row["completion_ids"]],
        completion_masks=[np.asarray(mask, dtype=bool) for mask in masks] if masks else None,
    )


def _mismatched_example(row: Row) -> Example:
    """Return the mismatched completions of a row; one that is empty stands for none."""
    completions = [np.asarray(ids, dtype=np.int64) for ids in row["kl_completion_ids"]]
    return Example(
        prompt_ids=np.asarray(row["prompt_ids"], dtype=np.int64),
        completion_ids=[ids for ids in completions if len(ids)],
    )
