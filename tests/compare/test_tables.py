"""What a comparison prints."""

import io

from rich.console import Console

from prefopt.compare.budget import Budget
from prefopt.compare.methods import Method
from prefopt.compare.plan import Run
from prefopt.compare.results import Comparison, MethodResult
from prefopt.compare.tables import print_plan, print_results
from prefopt.compare.tasks import Task
from prefopt.evaluation import Estimate


def printed(function, *arguments):
    text = io.StringIO()
    function(Console(file=text, width=120), *arguments)
    return text.getvalue()


def test_a_plan_shows_what_runs_take(tmp_path):
    task = Task("dpo-0-abc", tmp_path / "x", ())
    runs = [
        Run(Method("start", kind="start"), 0, task),
        *[Run(Method("dpo", {"loss_type": "dpo"}), 0, task, Budget(1200, 9600, 1.5e6))] * 2,
    ]
    text = printed(print_plan, runs)
    assert "dpo-0-abc" in text
    assert "1,200" in text
    assert "2 runs to train, 2,400 steps, about 3,000,000 tokens" in text


def test_results_show_intervals_baselines_and_the_verdict():
    metrics = {"accuracy": Estimate(0.712, 0.69, 0.734, 500), "kl": Estimate(1.5, 1.4, 1.6, 99)}
    found = Comparison(
        "t",
        "now",
        "c",
        verdict="dpo is best.",
        methods=(MethodResult("dpo", "dpo", metrics=metrics), MethodResult("sft", "sft")),
        data_baselines={
            "longer": Estimate(0.61, 0.6, 0.62, 500),
            "start": Estimate(0.5, 0, 1, 9),
            "chosen_reward": Estimate(-1.649, -1.7, -1.6, 500),
        },
    )
    text = printed(print_results, found)
    for words in (
        "71.2 ±2.2",
        "1.50 ±0.10",
        "accuracy of always the longer answer: 61.0%",
        "accuracy of the start's own log-probs: 50.0%",
        "reward of the data's chosen answers: -1.65",
        "dpo is best.",
    ):
        assert words in text
    assert "at equal" not in text  # no method has it
