"""results.csv: every measured number once, as it was recorded."""

import csv
import json

from prefopt.compare import Comparison, MethodResult, RunRecord, WinRate
from prefopt.compare.report.spreadsheet import COLUMNS, write_csv
from prefopt.evaluation import Estimate

HALF = Estimate(0.123456789, 0.4, 0.6, 100)


def rows_of(comparison: Comparison, path) -> list[dict[str, str]]:
    write_csv(comparison, path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_number_is_a_row(tmp_path):
    method = MethodResult(
        'dpo, "β"=0.1', "dpo", {"beta": 0.1}, False, {"kl": HALF}, {"kl": (1.5, 2.5)}
    )
    comparison = Comparison(
        "",
        "",
        "",
        methods=(method,),
        data_baselines={"longer": HALF},
        win_rates=(
            WinRate(method.name, "start", 0.7, HALF, HALF),
            WinRate("other", "chosen", 1, HALF),
        ),
        runs=(
            RunRecord("a", method.name, 7, "done", ""),
            RunRecord("b", method.name, 8, "failed", ""),
            RunRecord("c", method.name, 9, "done", ""),
        ),
    )
    rows = rows_of(comparison, tmp_path / "results.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [(it["metric"], it["seed"], float(it["value"]), it["size"]) for it in rows] == [
        ("kl", "", HALF.value, "100"),
        ("kl", "7", 1.5, ""),
        ("kl", "9", 2.5, ""),
        ("win_rate", "", HALF.value, "100"),
        ("length_controlled_win_rate", "", HALF.value, "100"),
        ("win_rate", "", HALF.value, "100"),
        ("accuracy", "", HALF.value, "100"),
    ]
    assert {it["method"] for it in rows[:5]} == {method.name}
    assert json.loads(rows[0]["options"]) == {"beta": 0.1}
    assert (rows[3]["against"], rows[3]["temperature"]) == ("start", "0.7")
    assert [it["method"] for it in rows[5:]] == ["other", "longer"]


def test_seeds_that_no_run_names_are_numbered(tmp_path):
    method = MethodResult("dpo", "dpo", by_seed={"kl": (1.0, 2.0)})
    rows = rows_of(Comparison("", "", "", methods=(method,)), tmp_path / "results.csv")
    assert [it["seed"] for it in rows] == ["#1", "#2"]
