"""The script that users copy."""

import json
import sys

import pytest

from benchmarks import compare_losses
from prefopt.toy.experiment import ExperimentSize


@pytest.fixture
def script(monkeypatch):
    """Run the script with options."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["compare_losses.py", *map(str, options)])
        compare_losses.main()

    return run


def test_the_runs_of_the_toy_world_are_printed(script, tmp_path, monkeypatch, capsys):
    import prefopt.toy.experiment as experiment

    small = lambda **sizes: ExperimentSize(  # noqa: E731
        fit_steps=2, pairs=120, held_out_pairs=20, frontier_samples=8, min_effective_samples=1
    )
    monkeypatch.setattr(experiment, "ExperimentSize", small)
    script("--output_dir", tmp_path, "--dry_run")
    printed = capsys.readouterr().err
    # Four losses have a beta, of which there are two, and all are run with two seeds.
    assert "20 runs to train, 2,000 steps" in printed
    assert (tmp_path / "start" / "config.json").is_file()


def test_a_model_and_rows_of_the_user_are_taken(script, tmp_path, monkeypatch):
    seen = {}
    found = type("Found", (), {"methods": ()})()
    monkeypatch.setattr(compare_losses, "compare", lambda **given: seen.update(given) or found)
    script("--model", "M", "--dataset", "D", "--output_dir", tmp_path, "--learning_rate", "2e-5")
    assert (seen["model"], seen["dataset"], seen["options"]) == ("M", "D", {"learning_rate": 2e-5})
    assert json.dumps(seen["betas"]) == "[0.1, 0.3]"
    with pytest.raises(SystemExit):
        script("--model", "M")
