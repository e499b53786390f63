"""The commands of the baselines."""

import pytest
import yaml

from prefopt.compare.baselines import on_policy
from prefopt.compare.baselines.__main__ import main
from prefopt.training.interrupt import TrainingInterrupted


@pytest.fixture
def config(tmp_path):
    """A file of options."""
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "beta": 0.5}))
    return str(path)


def test_a_command_gets_its_options_and_goes_on_where_it_is_told_to(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        on_policy, "train_on_policy", lambda its, resume: seen.append((its, resume))
    )
    assert main(["rl", "--config", config]) == 0
    assert main(["rl", "--config", config, "--resume_from_checkpoint", "true"]) == 0
    options = {"model": "m", "beta": 0.5}
    assert seen == [(options, False), (options, True)]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("a wrong\n option"), 2, "prefopt: error: a wrong option"),
        (TrainingInterrupted("SIGTERM", "out/checkpoint-3", 3), 143, "saved out/checkpoint-3"),
        (KeyboardInterrupt(), 130, "prefopt: interrupted"),
    ],
)
def test_a_failure_is_one_line(config, monkeypatch, capsys, error, code, text):
    def fail(options, resume):
        raise error

    monkeypatch.setattr(on_policy, "train_on_policy", fail)
    assert main(["rl", "--config", config]) == code
    assert text in capsys.readouterr().err


def test_what_has_no_checkpoints_does_not_go_on(config):
    with pytest.raises(SystemExit):
        main(["best_of_n", "--config", config, "--resume_from_checkpoint", "true"])
