"""In which order a recurrent layer computes the runs of a packed row: index arithmetic, no model.

A run of tokens can be computed when the state is known with which it starts. So the tree is
computed in *waves*: the runs that start texts, those that branch off from them, and so on. Runs of
one wave and similar length are rows of one call of the layer:

- rows that start texts are filled up on the left, where zeros leave a state of zeros as it is;
- rows that start from a state and whose own end nobody continues are filled up on the right;
- rows that start from a state and are continued have equal lengths, and are not filled up.

A mixer computes single tokens in another way (its step in generation, which writes into its states
and whose arithmetic differs), so no row that starts from a state has fewer than two. Runs of a few
tokens that others continue are computed again at the start of each of these, which is quicker than
a wave of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.engine.attention.plan import AttentionPlan
from prefopt.engine.layout import Segment
from prefopt.engine.prefix_tree import LEAST_SHARED

Ints = NDArray[np.int64]

# Rows of one call have at least this share of its width, or lack no more than these tokens.
_LEAST_SHARE, _MOST_LACKING = 0.75, 16


@dataclass(frozen=True)
class Run:
    """The tokens that give one segment's outputs: its own, and some before them.

    Attributes:
        segment: The segment.
        parts: Segments whose tokens are computed, the segment itself last.
        start: The segment at whose end the state is known; None at the start of a text.
        continued: Whether the state at the end is needed.
    """

    segment: int
    parts: tuple[int, ...]
    start: int | None
    continued: bool


class Wave(NamedTuple):
    """The rows of one call of a mixer.

    Attributes:
        tokens: The place in the packed row of each token, or of one that fills up; (n, width).
        mask: True for tokens; (n, width). None where rows are not filled up on the left.
        starts: For each row the number of the state with which it starts; (n,), None for zeros.
        keeps: Whether the states at the ends get the next n numbers.
    """

    tokens: Tensor
    mask: Tensor | None
    starts: Tensor | None
    keeps: bool


class Waves(NamedTuple):
    """All calls of a mixer for one packed row.

    Attributes:
        calls: The calls, in order.
        order: For each token of the row its place among the outputs of all calls, flattened; (T,).
        kept: The number of the state at the end of each segment in ``branch_points``, these
            sorted; (k,).
    """

    calls: tuple[Wave, ...]
    order: Tensor
    kept: Tensor


def branch_points(segments: Sequence[Segment], before: int) -> frozenset[int]:
    """Return which of the ``before`` segments of an earlier row are continued by these."""
    last = (max((it for it in one.ancestors if it < before), default=None) for one in segments)
    return frozenset(one for one in last if one is not None)


def make_waves(plan: AttentionPlan, device: torch.device) -> Waves:
    """Return the calls for the row of a plan, on a device.

    States of the row before it, if it has one, come first: those at that row's branch points.
    """
    runs = _runs(plan)
    levels = _levels(runs)
    before = () if plan.read_cache is None else sorted(plan.read_cache.branch_points)
    slots = {segment: number for number, segment in enumerate(before)}
    calls: list[Wave] = []
    order = np.zeros(int(plan.starts[-1]) - plan.query_offset, dtype=np.int64)
    outputs = 0
    for group in _groups(plan, runs, levels):
        wave = _wave(plan, group, slots, device)
        width = wave.tokens.shape[1]
        for row, run in enumerate(group):
            first, own = _first_column(plan, run, width), plan.lengths[run.segment]
            end = first + sum(plan.lengths[it] for it in run.parts)
            at = int(plan.starts[run.segment]) - plan.query_offset
            order[at : at + own] = outputs + row * width + np.arange(end - own, end)
        if wave.keeps:
            slots |= {run.segment: len(slots) + row for row, run in enumerate(group)}
        outputs += wave.tokens.numel()
        calls.append(wave)
    points = () if plan.write_cache is None else sorted(plan.write_cache.branch_points)
    kept = torch.tensor([slots[it] for it in points], dtype=torch.long, device=device)
    return Waves(tuple(calls), torch.from_numpy(order).to(device), kept)


def _runs(plan: AttentionPlan) -> list[Run]:
    """Return the run of each segment of the row, in row order."""
    wanted = set() if plan.write_cache is None else set(plan.write_cache.branch_points)
    runs = []
    for segment in reversed(range(plan.first, len(plan.segments))):  # the continued come last
        run = _run(plan, segment, segment in wanted)
        if run.start is not None:
            wanted.add(run.start)
        runs.append(run)
    return runs[::-1]


def _run(plan: AttentionPlan, segment: int, continued: bool) -> Run:
    above = list(plan.segments[segment].ancestors)
    parts = [segment]
    while above and above[-1] >= plan.first:
        length = sum(plan.lengths[part] for part in parts)
        short = len(above) > 1 and plan.lengths[above[-1]] < LEAST_SHARED
        if not short and (length > 1 or not continued):
            break
        parts.insert(0, above.pop())
    return Run(segment, tuple(parts), above[-1] if above else None, continued)


def _levels(runs: Sequence[Run]) -> dict[int, int]:
    """Return the wave of each segment."""
    levels: dict[int, int] = {}
    for run in runs:
        levels[run.segment] = levels.get(-1 if run.start is None else run.start, -1) + 1
    return levels


def _groups(plan: AttentionPlan, runs: Sequence[Run], levels: dict[int, int]) -> list[list[Run]]:
    """Return which runs are computed in one call, the calls in order."""

    def key(run: Run) -> tuple[int, bool, bool]:
        root = run.start is None
        return levels[run.segment], root, run.continued and not root

    groups: list[list[Run]] = []
    lengths = {run: sum(plan.lengths[part] for part in run.parts) for run in runs}
    for run in sorted(runs, key=lambda it: (*key(it), -lengths[it])):
        longest = groups[-1][0] if groups else None
        if longest is not None and key(longest) == key(run):
            lacking = lengths[longest] - lengths[run]
            equal = run.start is not None and run.continued
            if lacking <= 0 if equal else _fits(lacking, lengths[longest]):
                groups[-1].append(run)
                continue
        groups.append([run])
    return groups


def _fits(lacking: int, width: int) -> bool:
    return lacking <= max(_MOST_LACKING, (1 - _LEAST_SHARE) * width)


def _wave(
    plan: AttentionPlan, group: Sequence[Run], slots: dict[int, int], device: torch.device
) -> Wave:
    places = [plan.key_places(run.parts) - plan.query_offset for run in group]
    root = group[0].start is None
    begin = [slots[run.start] for run in group if run.start is not None]
    width = max(*(len(its) for its in places), 2)
    tokens = np.zeros((len(group), width), dtype=np.int64)
    mask = np.zeros((len(group), width), dtype=bool)
    for row, its in enumerate(places):
        first = width - len(its) if root else 0
        tokens[row] = its[-1]  # fills up with a token of its own
        tokens[row, first : first + len(its)] = its
        mask[row, first : first + len(its)] = True
    starts = None if root else torch.tensor(begin, device=device)
    filled_left = root and not mask.all()
    return Wave(
        torch.from_numpy(tokens).to(device),
        torch.from_numpy(mask).to(device) if filled_left else None,
        starts,
        any(run.continued for run in group),
    )


def _first_column(plan: AttentionPlan, run: Run, width: int) -> int:
    """Return the column of a run's first token in its row."""
    return width - sum(plan.lengths[part] for part in run.parts) if run.start is None else 0
