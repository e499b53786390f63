"""One batch of rows: from any format to token ids, with the facts that the report counts."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from datasets import Features, List, Value

from prefopt.data.errors import DataError
from prefopt.data.example import Example
from prefopt.data.formats import PROMPT_LIKE, SOURCE_COLUMNS, read_example
from prefopt.data.tokenize import Tokenized, Tokenizer, common_prefix_length, tokenize

__all__ = ["FACTS", "OPTIONAL", "OUTPUTS", "VERSION", "Plan", "prepare_batch"]

# Part of the key under which `datasets` caches prepared rows: raise it when they would come out
# differently, since `datasets` does not look into the functions of an installed package.
VERSION = 1
NO_ROOM = "the prompt leaves no room for a completion"
NO_TOKENS = "a completion has no token that counts"
MASKS = ("completion_mask", "completion_masks", "chosen_mask", "rejected_mask")
IDS = List(Value("int32"))
OUTPUTS = {
    "kind": Value("string"),
    "prompt_ids": IDS,
    "completion_ids": List(IDS),
    "desirable": List(Value("bool")),
    "ranks": List(Value("int32")),
}
OPTIONAL = {
    "completion_masks": List(List(Value("bool"))),
    "scores": List(Value("float64")),
    "kl_completion_ids": List(IDS),
}
# Facts about each row that go into the report and are removed again.
FACTS = {
    "_reason": Value("string"),
    "_cut_tokens": List(Value("int32")),
    "_identical": Value("bool"),
    "_identical_after": Value("bool"),
    "_moved": Value("bool"),
    "_layout_tokens": Value("int64"),
    "_keys": List(Value("int64")),
}


class Plan(NamedTuple):
    """Which columns a data set keeps, and which it gets.

    Attributes:
        extra: Columns that are kept as they are.
        outputs: Columns that ``prepare_batch`` returns.
    """

    extra: list[str]
    outputs: list[str]

    @classmethod
    def of(cls, columns: Sequence[str]) -> "Plan":
        """Return the plan for a data set with these columns.

        Raises:
            DataError: If a column has a name that is needed for what is returned.
        """
        has_ids = "prompt_ids" in columns
        wanted = {
            "completion_masks": has_ids and any(column in MASKS for column in columns),
            "scores": "scores" in columns
            and any(c in columns for c in ("completions", "responses", "completion_ids")),
            "kl_completion_ids": has_ids
            and any(c in columns for c in ("kl_completion_ids", "KL_completion_ids")),
        }
        outputs = [*OUTPUTS, *(column for column, want in wanted.items() if want), *FACTS]
        read = {*SOURCE_COLUMNS}
        if not wanted["scores"]:
            read -= {"scores"}
        if not has_ids:
            for column in {*OUTPUTS, *OPTIONAL} & {*columns} - {"ranks", "scores"}:
                raise DataError(
                    "is the name of a column of prepared data; rename yours with "
                    "dataset.rename_column",
                    column=column,
                )
        if clash := next((column for column in columns if column in FACTS), None):
            raise DataError("is a name prefopt uses meanwhile; rename yours", column=clash)
        extra = [column for column in columns if column not in read]
        return cls(extra, outputs)

    def features(self, given: Features) -> Features:
        """Return the types of what is kept of a data set with the given types, and of the new."""
        types = OUTPUTS | OPTIONAL | FACTS
        kept = {column: given[column] for column in self.extra}
        return Features({**kept, **{column: types[column] for column in self.outputs}})


def prepare_batch(
    batch: Mapping[str, Sequence[Any]],
    numbers: Sequence[int],
    *,
    tokenizer: Tokenizer | None,
    max_length: int | None,
    outputs: Sequence[str],
    version: int = VERSION,
) -> dict[str, list[Any]]:
    """Prepare a batch of rows; the function that ``datasets`` maps.

    It is given everything by argument, so that ``datasets`` finds what it prepared before.

    Args:
        batch: Columns of the rows.
        numbers: Numbers of the rows in the data set.
        tokenizer: As in ``prepare_dataset``.
        max_length: As in ``prepare_dataset``.
        outputs: Columns to return.
        version: Version of this function, for the cache of ``datasets``.

    Raises:
        DataError: If a row is none of the formats.
    """
    columns = [column for column in batch if column in SOURCE_COLUMNS or column in PROMPT_LIKE]
    others = {column: None for column in batch if column not in columns}
    examples = [
        read_example({**others, **{column: batch[column][place] for column in columns}}, number)
        for place, number in enumerate(numbers)
    ]
    tokenized = tokenize(examples, numbers, tokenizer)
    if "kl_completion_ids" in outputs:
        for example, number in zip(examples, numbers, strict=True):
            if example.kl_completions is None:
                raise DataError("is null; other rows have it", number, "kl_completion_ids")
    rows = [_finish(*both, max_length) for both in zip(examples, tokenized, strict=True)]
    return {column: [row[column] for row in rows] for column in outputs}


def _finish(example: Example, tokenized: Tokenized, max_length: int | None) -> dict[str, Any]:
    """Return the prepared row: cut, checked for something to learn, and its facts."""
    prompt, whole, moved = tokenized
    longest = max(map(len, [*whole, *(example.kl_completions or [])]), default=0)
    room = len(prompt) + longest if max_length is None else max_length
    room -= len(prompt)
    completions = [ids[: max(room, 0)] for ids in whole]
    mismatched = [ids[: max(room, 0)] for ids in example.kl_completions or []]
    masks = example.masks or [[True] * len(ids) for ids in whole]
    masks = [mask[: max(room, 0)] for mask in masks]
    # Nothing predicts the first token of a text.
    counted = [mask[1:] if not prompt else mask for mask in masks]
    reason = example.unusable
    if reason is None and room <= 0 and any(whole):
        reason = NO_ROOM
    if reason is None and not all(map(any, counted)):
        reason = NO_TOKENS
    used = reason is None
    return {
        "kind": example.kind,
        "prompt_ids": prompt if used else [],
        "completion_ids": completions if used else [],
        "desirable": example.desirable if used else [],
        "ranks": example.ranks if used else [],
        "completion_masks": masks if used else [],
        "scores": example.scores if used else [],
        "kl_completion_ids": mismatched if used else [],
        "_reason": reason,
        "_cut_tokens": [len(a) - len(b) for a, b in zip(whole, completions, strict=True)],
        "_identical": _any_equal(whole),
        "_identical_after": _any_equal(completions) and not _any_equal(whole),
        "_moved": moved,
        "_layout_tokens": _layout_tokens(prompt, completions) if used else 0,
        "_keys": [_key(ids) for ids in (prompt, *completions)] if used else [],
    }


def _any_equal(sequences: Sequence[Sequence[int]]) -> bool:
    return len({tuple(sequence) for sequence in sequences}) < len(sequences)


def _layout_tokens(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> int:
    """Return how many tokens ``engine.layout`` places for an example in ``shared_prefix``."""
    shared = min(common_prefix_length(completions[0], other) for other in completions)
    ends_here = all(len(ids) == shared for ids in completions)
    branches = sum(max(len(ids) - shared - 1, 0) for ids in completions)
    return len(prompt) + shared - ends_here + branches


def _key(ids: Sequence[int]) -> int:
    """Return a number that is equal for equal token ids, on every machine; 64 bits."""
    digest = blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
