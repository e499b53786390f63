"""Which kind of preferences a row holds, and which losses can learn from it."""

from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.data.columns import no_utf8
from prefopt.data.errors import DataError
from prefopt.data.example import Kind
from prefopt.data.formats import read_example
from prefopt.data.mixture import WeightedDataset, names_of, read_mixture
from prefopt.data.unread import without_media

__all__ = ["check_kind", "check_kind_by_kind", "detect_kind", "first_kinds"]

# Kinds of data that each kind of loss learns from: the pairs of a ranking, both completions of a
# pair with their labels. A ranking has no labels, and an unpaired row has nothing to compare.
LEARNS_FROM: dict[str, frozenset[str]] = {
    "paired": frozenset({"paired", "ranked"}),
    "unpaired": frozenset({"paired", "unpaired"}),
    "ranked": frozenset({"paired", "ranked"}),
    "preferred": frozenset({"paired", "unpaired", "ranked"}),
}
NEEDS = {
    "paired": "pairs ('prompt', 'chosen', 'rejected') or rankings",
    "unpaired": "unpaired rows ('prompt', 'completion', 'label') or pairs",
    "ranked": "rankings ('prompt', 'completions', 'ranks') or pairs",
    "preferred": "any preferences",
}
HINTS = {
    "ranked": " A pairwise loss learns from rankings; or turn them into pairs or unpaired rows.",
    "unpaired": " An unpaired row has one completion, so there is none to compare it with.",
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
    """Return the kind of the first row of the data, raw or prepared; of a mixture, of each part."""
    dataset = train_dataset if train_dataset is not None else eval_dataset
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()))
    if isinstance(dataset, list):
        parts = read_mixture(dataset)
        names = names_of(parts, "eval" if train_dataset is None else "train")
        return frozenset().union(*map(_first_kind_of_part, parts, names))
    try:
        row = next(iter(without_media(dataset)), None)
    except UnicodeDecodeError as error:
        raise no_utf8(dataset) from error
    if row is None:
        raise ValueError("the dataset has no rows")
    prepared = "completion_ids" in row and "kind" in row
    return frozenset({row["kind"] if prepared else detect_kind(row)})


def _first_kind_of_part(part: WeightedDataset, name: str) -> frozenset[str]:
    try:
        return first_kinds(part.dataset, None)
    except DataError as error:
        raise error.within(name) from error.__cause__


def check_kind(kinds_in_data: Iterable[str], objective_kinds: Iterable[str]) -> None:
    """Check that every loss has data to learn from, and every row a loss.

    Args:
        kinds_in_data: Kinds of the rows: ``paired``, ``unpaired``, ``ranked``.
        objective_kinds: Kinds of the losses: the same, or ``preferred`` for those on
            preferred completions alone.

    Raises:
        DataError: If they don't fit; it names the registered losses that would.

    Examples:
        >>> check_kind({"ranked"}, {"paired", "preferred"})
        >>> check_kind({"unpaired"}, {"unpaired"})
    """
    found, wanted = sorted(set(kinds_in_data)), sorted(set(objective_kinds))
    without_data = [kind for kind in wanted if not LEARNS_FROM[kind] & set(found)]
    # A loss on preferred completions takes every row. Beside a loss that compares completions it
    # does not count: a row that only it takes would teach nothing of what is preferred.
    main = [kind for kind in wanted if kind != "preferred"] or wanted
    unused = [kind for kind in found if not any(kind in LEARNS_FROM[loss] for loss in main)]
    if not without_data and not unused:
        return
    kind = without_data[0] if without_data else main[0]
    unfit = unused[0] if unused else found[0]
    data = f"the data is {' and '.join(found)}" if without_data else f"some of the data is {unfit}"
    raise DataError(
        f"{data}, but the loss needs {NEEDS[kind]}.{HINTS.get(unfit, '')} Losses that take {unfit} "
        f"data: {', '.join(_fitting(unfit)) or 'none is registered'}."
    )


def check_kind_by_kind(kinds_in_data: Iterable[str], losses: Mapping[str, Iterable[str]]) -> None:
    """Check that each kind of row in the data has losses, and that these can learn from it.

    Args:
        kinds_in_data: Kinds of the rows.
        losses: Kinds of the losses that each kind of row was given.

    Raises:
        DataError: If a kind of row has none, or one that cannot learn from it.

    Examples:
        >>> check_kind_by_kind({"paired"}, {"paired": ["paired"], "unpaired": ["unpaired"]})
    """
    without_loss = sorted(set(kinds_in_data) - set(losses))
    if without_loss:
        raise DataError(
            f"some of the data is {without_loss[0]}, but loss_type has losses for "
            f"{' and '.join(losses)} rows only; add one for {without_loss[0]!r}"
        )
    for kind, of_losses in losses.items():
        check_kind({kind}, of_losses)


def _fitting(kind: str) -> list[str]:
    from prefopt.losses import list_losses

    return [loss.name for loss in list_losses() if kind in LEARNS_FROM[loss.data_kind]]
