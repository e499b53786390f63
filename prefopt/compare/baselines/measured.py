"""Writes what was measured of a baseline, in the files of ``prefopt eval``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.evaluation import Estimate

__all__ = ["write_measured"]


def write_measured(
    folder: Path,
    *,
    model: str,
    dataset: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Estimate],
    data_baselines: Mapping[str, Estimate] | None = None,
    pairs: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    win_rates: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write ``evaluation.json``, last, and what there is of ``pairs.jsonl``, ``samples.jsonl``.

    Args:
        folder: Made if missing.
        model: What was measured.
        dataset: On which rows.
        settings: How.
        metrics: The numbers, with their intervals.
        data_baselines: What rules reach that know no model.
        pairs: A line for each held-out pair.
        samples: A line for each answer.
        win_rates: What a judge says of the answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pairs.jsonl", pairs), ("samples.jsonl", samples)):
        if rows:
            lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            (folder / name).write_text("".join(lines), encoding="utf-8")
    found = {
        "model": model,
        "dataset": dataset,
        "settings": dict(settings),
        "metrics": dict(metrics),
        "data_baselines": dict(data_baselines or {}),
        "win_rates": list(win_rates),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    part = folder / "evaluation.json.part"
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(folder / "evaluation.json")
