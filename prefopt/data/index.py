"""From prepared rows to the index of a batch: pairs, labels, preferred completions and rankings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from prefopt.data.prepared import Row
from prefopt.objective.preference_index import PreferenceIndex, Ranking


class _RowIndex(NamedTuple):
    """The completions of one prepared row, by their numbers in the batch; pairs better first."""

    row: Row
    first: int
    pairs: list[tuple[int, int]]
    preferred: list[int]

    @classmethod
    def of(cls, row: Row, first: int) -> "_RowIndex":
        ranks = list(enumerate(row["ranks"], first))
        pairs = [(better, worse) for better, a in ranks for worse, b in ranks if a < b]
        if ranks:
            preferred = [first + int(np.argmin(row["ranks"]))]
        else:
            preferred = [place for place, label in enumerate(row["desirable"], first) if label]
        return cls(row, first, pairs, preferred)


def index_of(rows: Sequence[Row], by_kind: bool = False) -> PreferenceIndex:
    """Return the index of the completions of prepared rows, with one for each kind if asked."""
    firsts = np.cumsum([0, *(len(row["completion_ids"]) for row in rows)])[:-1].tolist()
    parts = [_RowIndex.of(row, first) for row, first in zip(rows, firsts, strict=True)]
    kinds = ("paired", "unpaired", "ranked") if by_kind else ()
    of_kinds = {kind: _index([one for one in parts if one.row["kind"] == kind]) for kind in kinds}
    return _index(parts, of_kinds)


def _index(
    parts: Sequence[_RowIndex], by_kind: Mapping[str, PreferenceIndex] | None = None
) -> PreferenceIndex:
    pairs = [pair for part in parts for pair in part.pairs]
    unpaired = [part.first + place for part in parts for place in range(len(part.row["desirable"]))]
    labels = [bool(label) for part in parts for label in part.row["desirable"]]
    return PreferenceIndex(
        chosen=_integers([chosen for chosen, _ in pairs]),
        rejected=_integers([rejected for _, rejected in pairs]),
        unpaired=_integers(unpaired),
        labels=torch.tensor(labels, dtype=torch.bool),
        preferred=_integers([number for part in parts for number in part.preferred]),
        rankings=_rankings(parts),
        **_pair_columns(parts),
        **_weights(parts),
        by_kind=by_kind or {},
    )


def _rankings(parts: Sequence[_RowIndex]) -> tuple[Ranking, ...]:
    """Return the rankings of each size: indices, best first, and scores."""
    rankings = []
    for size in _ranking_sizes(parts):
        same = [part for part in parts if len(part.row["ranks"]) == size]
        index = [list(range(part.first, part.first + size)) for part in same]
        scores = [scores_of(part.row) or list(range(size - 1, -1, -1)) for part in same]
        rankings.append(Ranking(_integers(index), _numbers(scores)))
    return tuple(rankings)


def _ranking_sizes(parts: Sequence[_RowIndex]) -> list[int]:
    return sorted({len(part.row["ranks"]) for part in parts} - {0})


def scores_of(row: Row) -> list[float]:
    """Return the score of each completion of a row, in its order; an empty list if it has none."""
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        return [float(row["score_chosen"]), float(row["score_rejected"])]
    scores = None if row.get("kind") == "paired" else row.get("scores")
    return [] if scores is None else [float(score) for score in scores]


def _pair_columns(parts: Sequence[_RowIndex]) -> dict[str, torch.Tensor]:
    """Return margin, soft label and win rates of each pair, where any row has one."""
    columns: dict[str, torch.Tensor] = {}
    if any(part.row.get("margin") is not None or scores_of(part.row) for part in parts):
        columns["margins"] = _numbers([margin for part in parts for margin in _margins(part)])
    if any(part.row.get("preference_probability") is not None for part in parts):
        columns["preference_probabilities"] = _numbers(
            [_or_one(part.row.get("preference_probability")) for part in parts for _ in part.pairs]
        )
    if any(part.row.get("win_rate_chosen") is not None for part in parts):
        rates = [_win_rates(part.row) for part in parts for _ in part.pairs]
        of_both = _numbers(rates).view(-1, 2)
        columns["chosen_win_rates"], columns["rejected_win_rates"] = of_both.unbind(1)
    return columns


def _win_rates(row: Row) -> tuple[float, float]:
    """Return how often each completion wins; p and 1 - p of its soft label where none is given."""
    chosen, rejected = row.get("win_rate_chosen"), row.get("win_rate_rejected")
    if chosen is None or rejected is None:
        chosen = _or_one(row.get("preference_probability"))
        rejected = 1 - chosen
    return float(chosen), float(rejected)


def _margins(part: _RowIndex) -> list[float]:
    """Return by how much the chosen completion is better, for each pair of a row."""
    if part.row.get("margin") is not None:
        return [float(part.row["margin"])] * len(part.pairs)
    scores = scores_of(part.row)
    if not scores:
        return [0.0] * len(part.pairs)
    return [
        scores[chosen - part.first] - scores[rejected - part.first]
        for chosen, rejected in part.pairs
    ]


def _weights(parts: Sequence[_RowIndex]) -> dict[str, torch.Tensor]:
    """Return the weight of each unit of each kind, where any row has one."""
    if all(part.row.get("weight") is None for part in parts):
        return {}
    of_row = [_or_one(part.row.get("weight")) for part in parts]
    units = {
        "pair_weights": [len(part.pairs) for part in parts],
        "unpaired_weights": [len(part.row["desirable"]) for part in parts],
        "preferred_weights": [len(part.preferred) for part in parts],
    }
    weights = {name: _numbers(np.repeat(of_row, counts).tolist()) for name, counts in units.items()}
    sizes = [len(part.row["ranks"]) for part in parts]
    by_size = [
        weight
        for size in _ranking_sizes(parts)
        for weight, its in zip(of_row, sizes, strict=True)
        if its == size
    ]
    return weights | {"ranked_weights": _numbers(by_size)}


def _or_one(value: Any) -> float:
    return 1.0 if value is None else float(value)


def _integers(values: Sequence[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _numbers(values: Sequence[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
