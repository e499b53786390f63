"""Preference data of any format, as token ids: read, checked, counted."""

from prefopt.data.errors import DataError
from prefopt.data.example import Example, Kind
from prefopt.data.formats import read_example
from prefopt.data.kinds import check_kind, check_kind_by_kind, detect_kind
from prefopt.data.prepare import PreparedDataset, prepare_dataset
from prefopt.data.report import DataReport, Lengths, SetAside
from prefopt.data.sources import load_rows, report_for

__all__ = [
    "DataError",
    "DataReport",
    "Example",
    "Kind",
    "Lengths",
    "PreparedDataset",
    "SetAside",
    "check_kind",
    "check_kind_by_kind",
    "detect_kind",
    "load_rows",
    "prepare_dataset",
    "read_example",
    "report_for",
]
