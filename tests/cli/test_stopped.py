"""A command that is stopped: by a number that is not finite, a signal, a full disk."""

import json
import os
import shlex
import signal

import pytest

from prefopt.cli import how_to_go_on
from prefopt.training.checkpoints import problem_of
from prefopt.training.faults import StepGuard
from prefopt.training.interrupt import TrainingInterrupted

FAST = ("--report_to", "none", "--max_steps", "4", "--use_cpu", "--save_steps", "1")


@pytest.fixture
def train(prefopt, model_folder, data_files, tmp_path):
    """Run ``prefopt train`` for four steps."""

    def run(*more):
        data = ("--model", model_folder, "--dataset", data_files["paired"])
        words = ("train", *data, "--output_dir", tmp_path / "out", *FAST, *more)
        return prefopt(*words), [str(word) for word in words]

    return run


def test_a_number_that_is_not_finite_is_one_message_and_exit_code_1(train, tmp_path):
    result, _ = train("--optim", "sgd", "--learning_rate", "1e38", "--max_grad_norm", "0")
    assert result.code == 1, result.err
    error = result.err[result.err.rindex("prefopt: error: ") :]
    assert "step 2: the loss is" in error or "no checkpoint is saved" in error
    assert "Traceback" not in result.err
    assert not (tmp_path / "out" / "model.safetensors").exists()
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        assert problem_of(folder) is None


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_a_checkpoint_and_the_printed_command_goes_on(
    train, prefopt, tmp_path, monkeypatch, name, code
):
    steps = []
    add_loss = StepGuard.add_loss

    def send(self, loss):
        steps.append(loss)
        if len(steps) == 2:
            os.kill(os.getpid(), getattr(signal, name))
        add_loss(self, loss)

    with monkeypatch.context() as patched:
        patched.setattr(StepGuard, "add_loss", send)
        result, words = train("--save_strategy", "no")
    assert result.code == code, result.err
    assert (
        f"stopped by {name} after step 2; saved {tmp_path / 'out' / 'checkpoint-2'}" in result.err
    )
    command = result.err.splitlines()[-1].strip()
    assert shlex.split(command) == ["prefopt", *words, "--resume_from_checkpoint", "true"]
    again = prefopt(*shlex.split(command)[1:])
    assert again.code == 0, again.err
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_a_full_disk_is_one_message_that_names_the_whole_checkpoint(train, tmp_path, monkeypatch):
    write = StepGuard.begin

    def begin(self):
        write(self)
        if self._trainer.state.global_step == 2:

            def full(*args, **kwargs):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr("torch.save", full)

    monkeypatch.setattr(StepGuard, "begin", begin)
    result, _ = train()
    assert result.code == 1, result.err
    assert "No space left on device" in result.err
    assert f"resume from {tmp_path / 'out' / 'checkpoint-2'}, which is whole" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--a", "b c"],
        ["train", "--resume_from_checkpoint", "x", "--a", "b c"],
        ["train", "--resume-from-checkpoint=x", "--a", "b c"],
    ],
)
def test_the_command_that_goes_on_is_the_one_that_was_given(words, monkeypatch):
    stopped = TrainingInterrupted("SIGTERM", "out/checkpoint-3", 3)
    command = "prefopt train --a 'b c' --resume_from_checkpoint true"
    assert how_to_go_on(stopped, words).endswith(f"Go on with:\n  {command}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert f"Go on with, started as it was:\n  {command}" in how_to_go_on(stopped, words)
    assert how_to_go_on(TrainingInterrupted("SIGINT"), words).count("\n") == 0
