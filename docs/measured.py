"""Numbers of the README and the pages that are read from where they were measured or counted."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from prefopt.losses import list_losses

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "benchmarks" / "results"
SPEED = ("throughput_17m_dpo-kto-orpo_hh", "throughput_135m_dpo_hh")
SHAPES = {"17m": "Llama of 17M parameters", "135m": "shape of SmolLM2-135M"}

sys.path.insert(0, str(HERE.parent / "tests" / "parity"))
import golden_targets as golden  # noqa: E402 - data of the tests, which hold it to the cases


def speed_rows() -> list[tuple[str, ...]]:
    """Return the rows of the table of speed, the headings first."""
    headings = (
        "",
        "prefopt, pairs/s",
        "TRL, pairs/s",
        "TRL's time / prefopt's",
        "peak memory",
        "of the matmul rate",
    )
    return [headings, *(_speed_row(result) for name in SPEED for result in _read(name)["results"])]


def _speed_row(result: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs = result["sides"]["prefopt"], result["sides"]["trl"]
    compared = result["against"]["trl"]
    return (
        f"{result['loss'].upper()}, {SHAPES[result['size']]}",
        f"{ours['mean_pairs_per_s']:.2f}",
        f"{theirs['mean_pairs_per_s']:.2f}",
        f"{compared['ratio']['of_totals']:.1f}x",
        f"{compared['memory_ratio']:.2f}x",
        f"{ours['fraction_of_matmul']['median']:.0%}",
    )


def speed_caption() -> str:
    """Return on which machine, when and how the table of speed was measured."""
    (record, *others) = [_read(name)["record"] for name in SPEED]
    for key in ("commit", "device", "dtype", "batch", "versions"):
        if any(other[key] != record[key] for other in others):
            raise ValueError(f"the results of the table of speed differ in {key}")
    date = datetime.fromisoformat(record["date"])
    versions = record["versions"]
    return (
        f"Measured on {date.day} {date:%B %Y} on an {record['device'].replace('(R)', '')}, with "
        f"torch {versions['torch'].partition('+')[0]} and TRL {versions['trl']}: real pairs "
        f"(Anthropic HH), batches of {record['batch']}, {record['dtype']}, reference log-probs "
        "computed before. Model, batches and losses are the same on both sides (ORPO's differ by "
        "definition). The last column is the share of the rate at which the machine multiplies "
        "matrices."
    )


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def counts() -> dict[str, int]:
    """Return how many losses there are, and golden values that are matched and that are not."""
    return {
        "losses": sum(loss.built_in for loss in list_losses()),
        "matched": sum(golden.MATCHED.values()),
        "not_targets": sum(golden.NOT_TARGET.values()),
    }
