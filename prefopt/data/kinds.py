"""Which kinds of preference data which losses can learn from."""

from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.data.errors import DataError
from prefopt.data.example import Kind
from prefopt.data.formats import read_example

__all__ = ["check_kind", "check_kind_by_kind", "detect_kind", "first_kinds"]

# Kinds of data that each kind of loss can be given: the pairs of a ranking, the labelled halves of
# a pair. A ranking has no labels, and one labelled completion has nothing to be compared with.
FEEDS: dict[str, frozenset[str]] = {
    "paired": frozenset({"paired", "ranked"}),
    "unpaired": frozenset({"paired", "unpaired"}),
    "ranked": frozenset({"paired", "ranked"}),
    "preferred": frozenset({"paired", "unpaired", "ranked"}),
}
NEEDS = {
    "paired": "pairs ('prompt', 'chosen', 'rejected') or rankings",
    "unpaired": "labelled completions ('prompt', 'completion', 'label') or pairs",
    "ranked": "rankings ('prompt', 'completions', 'ranks') or pairs",
    "preferred": "any preferences",
}
ADVICE = {
    "ranked": " A pairwise loss learns from rankings; or make pairs or labels of them.",
    "unpaired": " A completion with a label has no other to be preferred to.",
    "paired": "",
}


def detect_kind(row: Mapping[str, Any]) -> Kind:
    """Return the kind of preference a row holds: paired, unpaired or ranked.

    Raises:
        DataError: If the row is none of the formats.

    Examples:
        >>> detect_kind({"prompt": "1 + 1 =", "completion": " 2", "label": True})
        'unpaired'
    """
    return read_example(row, 0).kind


def first_kinds(train_dataset: Any, eval_dataset: Any) -> frozenset[str]:
    """Return the kind of the first row of the data, raw or prepared.

    Raises:
        ValueError: If the data have no rows.
    """
    dataset = train_dataset if train_dataset is not None else eval_dataset
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()))
    for row in dataset:
        prepared = "completion_ids" in row and "kind" in row
        return frozenset({row["kind"] if prepared else detect_kind(row)})
    raise ValueError("the dataset has no rows")


def check_kind(kinds_in_data: Iterable[str], objective_kinds: Iterable[str]) -> None:
    """Check that losses and data fit: every loss can learn, and no row is without a loss.

    Args:
        kinds_in_data: Kinds of the rows: ``paired``, ``unpaired``, ``ranked``.
        objective_kinds: Kinds of the losses: the same, or ``preferred`` for those that look at
            preferred completions only.

    Raises:
        DataError: If they don't fit; it names the registered losses that would.

    Examples:
        >>> check_kind({"ranked"}, {"paired", "preferred"})
        >>> check_kind({"unpaired"}, {"unpaired"})
    """
    found, wanted = sorted(set(kinds_in_data)), sorted(set(objective_kinds))
    starving = [kind for kind in wanted if not FEEDS[kind] & set(found)]
    # A loss on preferred completions goes with every row, but is no use for what is left over when
    # another loss was chosen to learn the preferences themselves.
    judges = [kind for kind in wanted if kind != "preferred"] or wanted
    unused = [kind for kind in found if not any(kind in FEEDS[loss] for loss in judges)]
    if not starving and not unused:
        return
    kind = starving[0] if starving else judges[0]
    odd = unused[0] if unused else found[0]
    data = f"the data is {' and '.join(found)}" if starving else f"some of the data is {odd}"
    raise DataError(
        f"{data}, but the loss needs {NEEDS[kind]}.{ADVICE[odd]} Losses that take {odd} data: "
        f"{', '.join(_fitting(odd)) or 'none is registered'}."
    )


def check_kind_by_kind(kinds_in_data: Iterable[str], losses: Mapping[str, Iterable[str]]) -> None:
    """Check that each kind of row in the data has losses, and that these can learn from it.

    Args:
        kinds_in_data: Kinds of the rows.
        losses: Kinds of the losses that each kind of row was given.

    Raises:
        DataError: If a kind of row has none, or one that it cannot feed.

    Examples:
        >>> check_kind_by_kind({"paired"}, {"paired": ["paired"], "unpaired": ["unpaired"]})
    """
    left_over = sorted(set(kinds_in_data) - set(losses))
    if left_over:
        raise DataError(
            f"some of the data is {left_over[0]}, but loss_type has losses for "
            f"{' and '.join(losses)} rows only; add one for {left_over[0]!r}"
        )
    for kind, of_losses in losses.items():
        check_kind({kind}, of_losses)


def _fitting(kind: str) -> list[str]:
    from prefopt.losses import list_losses

    return [loss.name for loss in list_losses() if kind in FEEDS[loss.data_kind]]
