"""Trackers that are not installed, and callbacks that look for prompts."""

from importlib import util
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from prefopt.training.trackers import check_trackers
from tests.models import tiny_rows
from tests.runs import trainer


def test_a_tracker_that_is_not_installed_is_told_with_the_command(monkeypatch):
    monkeypatch.setattr("prefopt.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="trackio is not installed; pip install trackio"):
        check_trackers(SimpleNamespace(report_to=["trackio"]))
    check_trackers(SimpleNamespace(report_to=[]))
    check_trackers(SimpleNamespace(report_to=["somebody_elses"]))  # transformers knows them


def test_one_that_is_installed_is_taken(monkeypatch):
    found = lambda name: util.find_spec("json") if name == "tensorboardX" else None  # noqa: E731
    monkeypatch.setattr("prefopt.training.trackers.find_spec", found)
    check_trackers(SimpleNamespace(report_to=["tensorboard"]))


class _Completions(TrainerCallback):
    """Reads prompts as TRL's LogCompletionsCallback does."""

    def __init__(self, trainer, num_prompts):
        self.eval_dataset = trainer.eval_dataset.select(range(num_prompts))
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(list(self.eval_dataset["prompt"]))


def test_a_callback_that_generates_finds_the_prompts(tmp_path):
    rows = tiny_rows(4, seed=1)
    run = trainer(tmp_path, tiny_rows(8), eval_dataset=rows, max_steps=1)
    callback = _Completions(run, 2)
    run.add_callback(callback)
    run.train()
    assert callback.seen == [rows["prompt"][:2]]
