"""What was counted before a checkpoint is counted on."""

import json
import shutil

import pytest
import torch

from prefopt.objective.metrics import MetricSums
from prefopt.reference.processes import Processes
from prefopt.training.progress import PROGRESS_FILE, Progress
from prefopt.training.throughput import is_of_machine
from tests.models import tiny_rows
from tests.runs import trainer


def made(folder, kind="paired", **options):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1} | options
    return trainer(folder, tiny_rows(16, kind), **options)


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("paired", {"logging_steps": 4}),
        ("unpaired", {"logging_steps": 3, "loss_type": "kto", "gradient_accumulation_steps": 2}),
    ],
)
def test_the_log_of_a_resumed_run_is_that_of_an_undisturbed_one(tmp_path, at, kind, options):
    whole = made(tmp_path / "whole", kind, **options)
    done = whole.train()
    step = tmp_path / "again" / f"checkpoint-{at}"
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{at}", step)
    resumed = made(tmp_path / "again", kind, **options)
    again = resumed.train(resume_from_checkpoint=True)
    assert again.training_loss == done.training_loss
    assert len(resumed.state.log_history) == len(whole.state.log_history)
    for mine, wanted in zip(resumed.state.log_history, whole.state.log_history, strict=True):
        assert {k: v for k, v in mine.items() if not is_of_machine(k)} == {
            k: v for k, v in wanted.items() if not is_of_machine(k)
        }
    assert any("num_tokens" in entry for entry in resumed.state.log_history)


def test_a_second_run_counts_from_0(tmp_path):
    run = made(tmp_path, max_steps=2, save_strategy="no")
    run.train()
    first = [e["num_tokens"] for e in run.state.log_history if "num_tokens" in e]
    run.train()
    assert [e["num_tokens"] for e in run.state.log_history if "num_tokens" in e] == first


class FakeTrainer:
    """What is counted on in a trainer."""

    class args:  # an attribute
        should_save, device = True, "cpu"

    class state:
        global_step = 3

    def __init__(self):
        self._tr_loss = torch.tensor(0.5)
        self._total_loss_scalar, self._globalstep_last_logged = 2.0, 2


def test_other_numbers_of_processes_share_what_was_counted(tmp_path):
    """Two processes wrote it; one, or three, go on."""
    parts = [
        {"tokens": 10, "metrics": {"a": [1.0, 2.0]}, "loss": 1.0, "total_loss": 4.0},
        {"tokens": 5, "metrics": {"a": [3.0, 1.0]}, "loss": 2.0, "total_loss": 4.0},
    ]
    kept = {"version": 1, "skipped_steps": 1, "skipped_since_log": 1, "last_logged": 2}
    (tmp_path / PROGRESS_FILE).write_text(json.dumps(kept | {"processes": parts}))
    found = []
    for rank, count in ((0, 1), (0, 3), (1, 3), (0, 2), (1, 2)):
        trainer_, metrics = FakeTrainer(), MetricSums()
        processes = Processes(rank, count, lambda mine: [mine])
        progress = Progress(trainer_, metrics, processes)
        progress.resume(tmp_path)
        progress.on_train_begin(trainer_.args, trainer_.state, None)
        assert (progress.skipped, trainer_._globalstep_last_logged) == (1, 2)
        assert trainer_._total_loss_scalar == 6.0
        found.append((progress.tokens, metrics.state_dict()["a"], float(trainer_._tr_loss)))
    assert found == [
        (15, [4.0, 3.0], 2.0),
        (15, [4.0, 3.0], 2.0),
        (0, [0.0, 0.0], 2.0),
        (10, [1.0, 2.0], 1.5),
        (5, [3.0, 1.0], 2.5),
    ]
