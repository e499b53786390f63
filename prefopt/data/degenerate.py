"""Data from which nothing can be learned as a whole, though each row by itself could be right."""

import warnings
from collections.abc import Sequence

from prefopt.data.errors import DataError
from prefopt.data.report import DataReport

__all__ = ["check_learnable"]


def check_learnable(reports: Sequence[DataReport], name: str, takes_labels: bool = False) -> None:
    """Check that not all rows of a run are of a kind from which there is nothing to learn.

    Args:
        reports: Of the datasets that are trained on.
        name: What they are called together.
        takes_labels: Whether a loss learns from labels, as KTO does.

    Raises:
        DataError: If in all rows a completion is empty, or all pairs are of two that are the same.
    """
    rows = sum(report.kept for report in reports)
    kinds = {kind for report in reports for kind, count in report.kinds.items() if count}
    if rows and sum(report.empty for report in reports) == rows:
        problem = "each row has a completion without a word; are the right columns read?"
        raise DataError(problem, dataset=name)
    if rows and kinds == {"paired"}:
        before = sum(report.identical for report in reports)
        after = sum(report.identical_after_cut for report in reports)
        if before == rows:
            problem = "chosen and rejected are the same in each row, so nothing would be learned"
            raise DataError(problem, dataset=name)
        if before + after == rows:
            raise DataError(
                "chosen and rejected are the same in each row once they are cut to max_length, so "
                "nothing would be learned; raise max_length",
                dataset=name,
            )
    desirable = sum(report.desirable for report in reports)
    undesirable = sum(report.undesirable for report in reports)
    if takes_labels and kinds == {"unpaired"} and 0 in (desirable, undesirable):
        warnings.warn(
            f"{name} data: every label is {desirable > 0} ({rows:,} rows), so the loss only makes "
            f"what is in the data {'likelier' if desirable else 'less likely'}, whatever it is; "
            "KTO is made for rows of both labels",
            stacklevel=2,
        )
