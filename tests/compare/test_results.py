"""What a comparison found survives its JSON file."""

from prefopt.compare import Comparison, Curve, MethodResult, PairedTest, RunRecord, WinRate
from prefopt.evaluation import Estimate, FrontierPoint

HALF = Estimate(0.5, 0.4, 0.6, 100)


def test_a_saved_comparison_is_loaded_equal(tmp_path):
    comparison = Comparison(
        "title",
        "2026-01-01T00:00:00",
        "prefopt compare",
        spec={"betas": [0.1, 0.3]},
        methods=(
            MethodResult(
                "dpo", "dpo", {"beta": 0.1}, False, {"accuracy": HALF}, {"kl": (1.0, 2.0)}
            ),
        ),
        data_baselines={"longer": HALF},
        tests=(PairedTest("dpo", "ipo", "accuracy", HALF, 0.2, 0.4),),
        frontier=(FrontierPoint(float("inf"), 0.1, 0.0, 9.0),),
        curves=(Curve("dpo", 0, "loss", (1, 2), (0.7, 0.6)),),
        win_rates=(
            WinRate("dpo", "start", 0.7, HALF, None),
            WinRate("dpo", "start", 1.0, HALF, HALF),
        ),
        runs=(RunRecord("dpo-1", "dpo", 0, "done", "prefopt train"),),
    )
    comparison.save(tmp_path / "results.json")
    assert Comparison.load(tmp_path / "results.json") == comparison
