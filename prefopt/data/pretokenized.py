"""Rows of token ids, which are used as they are; ``prefopt.data.formats`` lists the columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefopt.data.example import Cells, Judgement, PreferenceExample, read_label, read_ranking

__all__ = ["IDS_COLUMNS", "read_ids"]

IDS_COLUMNS = (
    "prompt_ids",
    "completion_ids",
    "chosen_ids",
    "rejected_ids",
    "completion_mask",
    "completion_masks",
    "chosen_mask",
    "rejected_mask",
    "kl_completion_ids",
    "KL_completion_ids",
    "kind",
    "desirable",
)


def read_ids(row: Cells) -> PreferenceExample:
    """Return the example of a row of token ids."""
    why = "a row of token ids needs 'prompt_ids', and 'chosen_ids' and 'rejected_ids', or "
    why += "'completion_ids'"
    prompt = _ids(row, "prompt_ids", row.need("prompt_ids", why), may_be_empty=True)
    if "chosen_ids" in row or "rejected_ids" in row:
        names = ("chosen_ids", "rejected_ids")
        completions = [_ids(row, name, row.need(name, why)) for name in names]
        judgement = Judgement.of_pair()
        masks = _read_masks(row, completions, ("chosen_mask", "rejected_mask"))
    else:
        given = row.need("completion_ids", why)
        nested = isinstance(given, list) and bool(given) and not _is_number(given[0])
        column = "completion_ids"
        completions = [_ids(row, column, ids) for ids in (given if nested else [given])]
        judgement = _read_judgement(row, completions, nested)
        masks = _read_masks(row, completions, ())
    order = judgement.order
    return PreferenceExample(
        kind=judgement.kind,
        form="ids",
        prompt=prompt,
        completions=[completions[place] for place in order],
        masks=[masks[place] for place in order] if masks is not None else None,
        kl_completions=_read_kl(row, order),
        desirable=judgement.desirable,
        ranks=judgement.ranks,
        scores=judgement.scores,
        unusable=judgement.unusable,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _read_judgement(row: Cells, completions: list[list[int]], nested: bool) -> Judgement:
    """Return the kind of a row of ``completion_ids``, and its label or ranks."""
    count = len(completions)
    stated = row.get("kind")
    if stated not in (None, "paired", "unpaired", "ranked"):
        raise row.wrong("kind", f"needs 'paired', 'unpaired' or 'ranked', got {stated!r}")
    if stated == "paired":
        if count != 2:
            raise row.wrong("completion_ids", f"a pair has 2 completions, got {count}")
        for column, wanted in {"desirable": [True, False], "ranks": [0, 1]}.items():
            if row.get(column) not in (None, wanted):
                raise row.wrong(column, f"is {row.get(column)}, but a pair's is {wanted}")
        return Judgement.of_pair()
    if stated == "unpaired" or (stated is None and ("label" in row or not nested)):
        if count != 1:
            raise row.wrong("completion_ids", f"an unpaired row has 1 completion, got {count}")
        desirable = row.get("desirable")
        if "label" not in row and isinstance(desirable, list) and len(desirable) == 1:
            if desirable[0] not in (0, 1):
                raise row.wrong("desirable", f"needs True or False, got {desirable[0]!r}")
            return Judgement.of_label(bool(desirable[0]))
        return Judgement.of_label(read_label(row))
    if stated is None and not ("ranks" in row or row.get("scores")):
        raise row.wrong(
            "completion_ids",
            "does not say which completion is better: use 'chosen_ids' and 'rejected_ids', or add "
            "'label', 'ranks', 'scores' or 'kind'",
        )
    if not row.get("scores"):  # prepared rows of other kinds have an empty list there
        row = Cells({k: v for k, v in row.values.items() if k != "scores"}, row.columns, row.number)
    return read_ranking(row, count, ranked_as_given=False)


def _ids(row: Cells, column: str, value: Any, *, may_be_empty: bool = False) -> list[int]:
    if not isinstance(value, list):
        raise row.wrong(column, f"needs a list of token ids, got {type(value).__name__}")
    most = 2**31 if row.vocabulary is None else row.vocabulary
    if value and not _are_ids(value, most):
        for place, token in enumerate(value):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < most:
                wanted = f"a whole number from 0 to {most - 1}"
                raise row.wrong(column, f"token {place} is {token!r}; it needs {wanted}")
    if not value and not may_be_empty:
        raise row.wrong(column, "is empty; a completion needs at least one token")
    return value


def _are_ids(value: list[Any], most: int) -> bool:
    try:
        ids = np.asarray(value)
    except ValueError:  # lists of several lengths
        return False
    return ids.ndim == 1 and ids.dtype.kind == "i" and ids.min() >= 0 and ids.max() < most


def _read_masks(
    row: Cells, completions: list[list[int]], pair: tuple[str, ...]
) -> list[list[bool]] | None:
    """Return the mask of each completion, or None if the row has none."""
    if any(name in row for name in pair):
        names: Sequence[str] = pair
        given: Any = [row.need(name, "both completions need a mask, or neither") for name in pair]
    else:
        found = [name for name in ("completion_mask", "completion_masks") if name in row]
        if not found:
            return None
        names, given = found[:1] * len(completions), row.get(found[0])
        if isinstance(given, list) and given and _is_number(given[0]):
            given = [given]
    if not isinstance(given, list) or len(given) != len(completions):
        raise row.wrong(names[0], f"needs {len(completions)} masks, one a completion")
    for name, mask, ids in zip(names, given, completions, strict=True):
        if not isinstance(mask, list) or len(mask) != len(ids):
            found_length = len(mask) if isinstance(mask, list) else type(mask).__name__
            raise row.wrong(
                name, f"needs {len(ids)} values, one a token of the completion, got {found_length}"
            )
        for place, counts in enumerate(mask):
            if counts not in (0, 1):
                raise row.wrong(name, f"value {place} is {counts!r}; it needs True or False")
    return [[bool(counts) for counts in mask] for mask in given]


def _read_kl(row: Cells, order: Sequence[int]) -> list[list[int]] | None:
    count = len(order)
    for column in ("kl_completion_ids", "KL_completion_ids"):
        given = row.get(column)
        if given is None:
            continue
        if isinstance(given, list) and given and _is_number(given[0]):
            given = [given]
        if not isinstance(given, list) or len(given) != count:
            raise row.wrong(column, f"needs {count} lists of token ids, one a completion")
        # Of prepared rows it is empty where no other row had one.
        return [_ids(row, column, given[place], may_be_empty=True) for place in order]
    return None
