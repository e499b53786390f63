"""The files of what was measured."""

import json

import pytest

from prefopt.compare.baselines.measured import write_measured
from prefopt.evaluation import Estimate


def test_files_are_those_of_eval(tmp_path):
    metrics = {"accuracy": Estimate(0.5, 0.25, 0.75, 8)}
    told = {"model": "m", "dataset": "d", "settings": {"n": 3}, "metrics": metrics}
    write_measured(tmp_path / "out", **told, pairs=[{"row": 0}, {"row": 1}])
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["metrics"] == {"accuracy": [0.5, 0.25, 0.75, 8]}
    assert (found["settings"], found["data_baselines"], found["win_rates"]) == ({"n": 3}, {}, [])
    assert (tmp_path / "out" / "pairs.jsonl").read_text() == '{"row": 0}\n{"row": 1}\n'
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.json",
        "pairs.jsonl",
    ]


def test_a_number_that_is_none_is_an_error_and_nothing_looks_done(tmp_path):
    metrics = {"accuracy": Estimate(float("nan"), 0, 1, 8)}
    with pytest.raises(ValueError, match="JSON"):
        write_measured(tmp_path, model="m", dataset="d", settings={}, metrics=metrics)
    assert not (tmp_path / "evaluation.json").exists()
