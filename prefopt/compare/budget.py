"""The same budget for every method, in tokens.

A token counts each time a loss looks at it: of a row, the prompt and the completion of each text;
sharing prompts or padding changes no number. A pairwise loss looks at both texts of a pair, an
unpaired one too (as a text with each label), and one such as ``sft`` at the preferred text only, so
it takes more rows for its tokens. With losses that look at the same texts and batches of the same
size, all methods make the same number of steps. What training logs as ``num_tokens`` counts all
texts of a row, also those that ``sft`` does not learn from. Mismatched completions (KTO's estimate
of the KL) are not trained on and not counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from prefopt.config import PreferenceConfig
from prefopt.data import load_rows, prepare_dataset
from prefopt.objective import Objective

__all__ = ["Budget", "RowTokens", "budget_of", "row_tokens"]

SAMPLE = 2000  # rows whose tokens are counted


@dataclass(frozen=True)
class RowTokens:
    """Tokens of a row, on average.

    Attributes:
        all: Of every prompt + completion.
        preferred: Of the prompt + the preferred completion.
    """

    all: float
    preferred: float

    def of(self, objective: Objective) -> float:
        """Return the tokens that a loss looks at."""
        return self.preferred if objective.data_kinds == {"preferred"} else self.all


@dataclass(frozen=True)
class Budget:
    """What a run takes.

    Attributes:
        steps: Optimiser steps.
        rows: Rows, those seen again counted again.
        tokens: Tokens, about.
        share: Part of the tokens of its rows that the loss looks at.
    """

    steps: int
    rows: int
    tokens: float
    share: float = 1.0


def row_tokens(train: Path, tokenizer: Any, max_length: int | None) -> RowTokens:
    """Count the tokens of the first rows that are trained on.

    Args:
        train: The file of rows.
        tokenizer: Of the model.
        max_length: Most tokens of a prompt + completion.
    """
    rows: Dataset = load_rows(str(train))
    some = rows.select(range(min(len(rows), SAMPLE)))
    prepared = prepare_dataset(some, tokenizer, max_length=max_length).dataset
    every, preferred = [], []
    for row in prepared:
        lengths = [len(row["prompt_ids"]) + len(ids) for ids in row["completion_ids"]]
        every.append(sum(lengths))
        preferred.append(sum(lengths if row["kind"] == "unpaired" else lengths[:1]))
    return RowTokens(sum(every) / len(every), sum(preferred) / len(preferred))


def budget_of(
    own: PreferenceConfig,
    common: PreferenceConfig,
    own_options: Mapping[str, Any],
    rows: int,
    tokens: RowTokens,
) -> Budget:
    """Return what a method takes, so that it sees as many tokens as the others.

    Args:
        own: The method's configuration.
        common: That of all methods, a pairwise loss; it says how long training is.
        own_options: What of it is the method's own; ``max_steps`` there goes before the budget.
        rows: Rows to train on.
        tokens: Tokens of a row.
    """
    common_rows, own_rows = _rows_per_step(common), _rows_per_step(own)
    steps = common.max_steps
    if steps < 1:
        steps = math.ceil(math.ceil(rows / common_rows) * common.num_train_epochs)
    total = steps * common_rows * tokens.all
    each = own_rows * tokens.of(own.objective)
    own_steps = own_options.get("max_steps") or max(1, round(total / each))
    share = tokens.of(own.objective) / tokens.all
    return Budget(own_steps, own_steps * own_rows, own_steps * each, share)


def _rows_per_step(config: PreferenceConfig) -> int:
    batch: int = config.per_device_train_batch_size
    return batch * int(config.gradient_accumulation_steps)
