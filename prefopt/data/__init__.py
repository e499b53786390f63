"""Preference data in any format: read, checked, counted, and turned into token ids."""

from prefopt.data.collate import PreferenceCollator
from prefopt.data.errors import DataError
from prefopt.data.example import Kind, PreferenceExample
from prefopt.data.formats import read_example
from prefopt.data.kinds import check_kind, check_kind_by_kind, detect_kind
from prefopt.data.load import load_rows, report_for
from prefopt.data.mixture import WeightedDataset
from prefopt.data.prepare import PreparedDataset, prepare_dataset
from prefopt.data.report import DataReport, Lengths, Remark, Room, Sample, SetAside

__all__ = [
    "DataError",
    "DataReport",
    "Kind",
    "Lengths",
    "PreferenceCollator",
    "PreferenceExample",
    "PreparedDataset",
    "Remark",
    "Room",
    "Sample",
    "SetAside",
    "WeightedDataset",
    "check_kind",
    "check_kind_by_kind",
    "detect_kind",
    "load_rows",
    "prepare_dataset",
    "read_example",
    "report_for",
]
