"""How the completions of a batch may be seen: as pairs, thumbs, best ones or rankings; weights.

``prefopt.objective.inputs`` says what each view is for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Row = Mapping[str, Any]

# Columns of the data beside prompt, completions and their ranks, scores or labels.
COLUMNS = (
    "weight",
    "margin",
    "preference_probability",
    "score_chosen",
    "score_rejected",
    "win_rate_chosen",
    "win_rate_rejected",
)

# What of a batch losses and metrics look at.
VIEWS = (
    "chosen_index",
    "rejected_index",
    "labelled_index",
    "preferred_index",
    "desirable",
    "rankings",
    "examples",
    "lengths",
)
# What is there only if the data have such a column, or rows of several kinds.
OPTIONAL_VIEWS = (
    "margins",
    "preference_probabilities",
    "chosen_win_rates",
    "rejected_win_rates",
    "pair_weights",
    "labelled_weights",
    "preferred_weights",
    "ranked_weights",
    "of_kind",
)
_INDICES = VIEWS[:4]


def views_of(rows: Sequence[Row], by_kind: bool = False) -> dict[str, Any]:
    """Return the views of the completions of some rows, as tensors by name.

    Args:
        rows: Prepared rows.
        by_kind: Whether to add ``of_kind``, the views of the rows of each kind.
    """
    firsts = np.cumsum([0, *(len(row["completion_ids"]) for row in rows)])[:-1].tolist()
    views = _views(rows, firsts)
    if by_kind:
        kinds = [row["kind"] for row in rows]
        views["of_kind"] = {
            kind: _views(
                [row for row, its in zip(rows, kinds, strict=True) if its == kind],
                [first for first, its in zip(firsts, kinds, strict=True) if its == kind],
            )
            for kind in ("paired", "unpaired", "ranked")
        }
    return views


def select_views(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the views of a batch without its texts."""
    names = (*VIEWS, *(name for name in OPTIONAL_VIEWS if name in batch))
    return {name: batch[name] for name in names}


def _views(rows: Sequence[Row], firsts: Sequence[int]) -> dict[str, Any]:
    parts = [_row_views(row, first) for row, first in zip(rows, firsts, strict=True)]
    joined = {name: [item for part in parts for item in part[name]] for name in _INDICES}
    views: dict[str, Any] = {
        name: torch.tensor(index, dtype=torch.int64) for name, index in joined.items()
    }
    desirable = [bool(label) for row in rows for label in row["desirable"]]
    views["desirable"] = torch.tensor(desirable, dtype=torch.bool)
    ranked = [(row, first) for row, first in zip(rows, firsts, strict=True) if len(row["ranks"])]
    views["rankings"] = _rankings(ranked)
    return views | _pair_columns(rows, parts) | _weights(rows, parts, ranked)


def _row_views(row: Row, first: int) -> dict[str, list[int]]:
    """Return the indices of the completions of a row, of which the first is number ``first``."""
    ranks, labels = row["ranks"], row["desirable"]
    pairs = [
        (first + better, first + worse)
        for better in range(len(ranks))
        for worse in range(len(ranks))
        if ranks[better] < ranks[worse]
    ]
    if len(ranks):
        preferred = [first + int(np.argmin(ranks))]
    else:
        preferred = [first + place for place, label in enumerate(labels) if label]
    return {
        "chosen_index": [chosen for chosen, _ in pairs],
        "rejected_index": [rejected for _, rejected in pairs],
        "labelled_index": list(range(first, first + len(labels))),
        "preferred_index": preferred,
    }


def _rankings(ranked: Sequence[tuple[Row, int]]) -> list[dict[str, torch.Tensor]]:
    """Return the rankings of each size: indices, best first, and scores."""
    rankings = []
    for size in sorted({len(row["ranks"]) for row, _ in ranked}):
        same = [(row, first) for row, first in ranked if len(row["ranks"]) == size]
        index = [list(range(first, first + size)) for _, first in same]
        scores = [scores_of(row) or list(range(size - 1, -1, -1)) for row, _ in same]
        rankings.append(
            {
                "index": torch.tensor(index, dtype=torch.int64),
                "scores": torch.tensor(scores, dtype=torch.float32),
            }
        )
    return rankings


def scores_of(row: Row) -> list[float]:
    """Return the score of each completion of a row, in its order; an empty list if it has none."""
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        return [float(row["score_chosen"]), float(row["score_rejected"])]
    scores = row.get("scores")
    return [] if scores is None else [float(score) for score in scores]


def _pair_columns(rows: Sequence[Row], parts: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Return margin, soft label and win rates of each pair, where any row has one."""
    columns: dict[str, torch.Tensor] = {}
    if any(row.get("margin") is not None or scores_of(row) for row in rows):
        margins = [m for row, part in zip(rows, parts, strict=True) for m in _margins(row, part)]
        columns["margins"] = torch.tensor(margins, dtype=torch.float32)
    if any(row.get("preference_probability") is not None for row in rows):
        columns["preference_probabilities"] = _repeated(
            rows, parts, "chosen_index", "preference_probability"
        )
    if any(row.get("win_rate_chosen") is not None for row in rows):
        rates = [
            _win_rates(row)
            for row, part in zip(rows, parts, strict=True)
            for _ in part["chosen_index"]
        ]
        of_both = torch.tensor(rates, dtype=torch.float32).view(-1, 2)
        columns["chosen_win_rates"], columns["rejected_win_rates"] = of_both.unbind(1)
    return columns


def _win_rates(row: Row) -> tuple[float, float]:
    """Return how often each completion wins; p and 1 - p of its soft label where none is given."""
    chosen, rejected = row.get("win_rate_chosen"), row.get("win_rate_rejected")
    if chosen is None or rejected is None:
        chosen = _or_one(row.get("preference_probability"))
        rejected = 1 - chosen
    return float(chosen), float(rejected)


def _margins(row: Row, part: Mapping[str, list[int]]) -> list[float]:
    """Return by how much the chosen completion is better, for each pair of a row."""
    pairs = list(zip(part["chosen_index"], part["rejected_index"], strict=True))
    if row.get("margin") is not None:
        return [float(row["margin"])] * len(pairs)
    scores = scores_of(row)
    if not scores:
        return [0.0] * len(pairs)
    best = min((index for pair in pairs for index in pair), default=0)
    return [scores[chosen - best] - scores[rejected - best] for chosen, rejected in pairs]


def _weights(
    rows: Sequence[Row], parts: Sequence[Any], ranked: Sequence[tuple[Row, int]]
) -> dict[str, torch.Tensor]:
    """Return the weight of each unit of each view, where any row has one."""
    if all(row.get("weight") is None for row in rows):
        return {}
    sizes = sorted({len(row["ranks"]) for row, _ in ranked})
    by_size = [row for size in sizes for row, _ in ranked if len(row["ranks"]) == size]
    return {
        "pair_weights": _repeated(rows, parts, "chosen_index", "weight"),
        "labelled_weights": _repeated(rows, parts, "labelled_index", "weight"),
        "preferred_weights": _repeated(rows, parts, "preferred_index", "weight"),
        "ranked_weights": torch.tensor([_or_one(row.get("weight")) for row in by_size]),
    }


def _repeated(rows: Sequence[Row], parts: Sequence[Any], view: str, column: str) -> torch.Tensor:
    """Return a column of the rows, repeated for each unit that a view has of the row."""
    values = [
        _or_one(row.get(column)) for row, part in zip(rows, parts, strict=True) for _ in part[view]
    ]
    return torch.tensor(values, dtype=torch.float32)


def _or_one(value: Any) -> float:
    return 1.0 if value is None else float(value)
