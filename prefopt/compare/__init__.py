"""Comparing methods: runs of several from one start, measured alike, and what they show.

``prefopt.compare.compare(...)`` is the command ``prefopt compare`` as a function.
"""

from prefopt.compare.comparison import Resources, compare
from prefopt.compare.results import (
    Comparison,
    Curve,
    Diagnosis,
    MethodResult,
    PairedTest,
    RunRecord,
    Sample,
    WinRate,
)

__all__ = [
    "Comparison",
    "Curve",
    "Diagnosis",
    "MethodResult",
    "PairedTest",
    "Resources",
    "RunRecord",
    "Sample",
    "WinRate",
    "compare",
]
