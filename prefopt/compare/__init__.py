"""Which loss for my data? A matrix of runs from one start, measured alike, and what it shows."""

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
    "RunRecord",
    "Sample",
    "WinRate",
]
