"""Ctrl-C and the signals of schedulers: a checkpoint, then away."""

import os
import signal
import threading

import pytest
import torch
from transformers import TrainerCallback

from prefopt.training.checkpoints import problem_of
from prefopt.training.interrupt import Interrupt, TrainingInterrupted
from tests.models import tiny_rows
from tests.runs import steps, trainer

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class SendAt(TrainerCallback):
    """Sends signals to this process at an event of a step."""

    def __init__(self, event, step, *names):
        self._step, self._names = step, names
        setattr(self, event, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            for name in self._names:
                os.kill(os.getpid(), getattr(signal, name))


def made(folder, **options):
    return trainer(folder, tiny_rows(16), **({"max_steps": 4, "log_throughput": False} | options))


def handlers():
    return [signal.getsignal(getattr(signal, name)) for name in SIGNALS]


@pytest.mark.parametrize(
    ("name", "event"),
    [("SIGINT", "on_step_begin"), ("SIGTERM", "on_log"), ("SIGUSR1", "on_step_end")],
)
def test_a_signal_saves_a_checkpoint_from_which_training_goes_on(tmp_path, name, event):
    before = handlers()
    run = made(tmp_path / "run")  # save_strategy="no": it saves all the same
    run.add_callback(SendAt(event, 2, name))
    with pytest.raises(KeyboardInterrupt, match=f"stopped by {name} after step 3") as error:
        run.train()
    assert handlers() == before
    assert error.value.exit_code == SIGNALS[name]
    assert error.value.checkpoint == str(tmp_path / "run" / "checkpoint-3")
    assert problem_of(tmp_path / "run" / "checkpoint-3") is None
    assert "resume_from_checkpoint=True" in str(error.value)
    whole = made(tmp_path / "whole")
    whole.train()
    resumed = made(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(flat(resumed.model), flat(whole.model))
    assert steps(resumed) == steps(whole)


@pytest.mark.parametrize("strategy", ["steps", "epoch", "best"])
def test_it_saves_whatever_else_is_saved_and_keeps_the_newest(tmp_path, strategy):
    """Transformers would delete all but the best at the end."""
    best = {"save_total_limit": 1, "load_best_model_at_end": True, "eval_strategy": "steps"}
    best |= {"eval_steps": 1, "save_steps": 1, "metric_for_best_model": "loss"}
    options = best | {"greater_is_better": True}  # the first is the best then
    if strategy == "epoch":
        options = {"save_strategy": "epoch", "save_total_limit": 1}
    run = made(
        tmp_path, eval_dataset=tiny_rows(4, seed=1), **({"save_strategy": strategy} | options)
    )
    run.add_callback(SendAt("on_step_begin", 1, "SIGTERM"))
    with pytest.raises(TrainingInterrupted) as error:
        run.train()
    assert error.value.checkpoint == str(tmp_path / "checkpoint-2")
    assert problem_of(tmp_path / "checkpoint-2") is None


def test_a_second_ctrl_c_leaves_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("prefopt.training.interrupt._ONE_PRESS_S", -1)
    run = made(tmp_path)
    run.add_callback(SendAt("on_step_begin", 1, "SIGINT", "SIGINT"))
    with pytest.raises(TrainingInterrupted, match="nothing was saved"):
        run.train()
    assert list(tmp_path.glob("checkpoint-*")) == []


@pytest.mark.parametrize("names", [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGTERM", "SIGTERM")])
def test_other_signals_behind_the_first_change_nothing(tmp_path, names):
    """A launcher passes on what the terminal has sent already, and asks again."""
    run = made(tmp_path)
    run.add_callback(SendAt("on_step_begin", 1, *names))
    with pytest.raises(TrainingInterrupted, match=f"stopped by {names[0]} after step 2"):
        run.train()


def test_before_the_first_step_there_is_nothing_to_wait_for(tmp_path):
    run = made(tmp_path)

    def send(*args):
        os.kill(os.getpid(), signal.SIGTERM)

    run.get_train_dataloader = send
    with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM before the first step"):
        run.train()


def test_who_hears_a_signal_already_goes_on_hearing_it(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *args: heard.append("mine"))
    try:
        run = made(tmp_path, max_steps=2)
        run.add_callback(SendAt("on_step_begin", 1, "SIGTERM"))
        run.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["mine"]
    assert run.state.global_step == 2


def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(handlers())

    run = made(tmp_path, max_steps=1)
    run.add_callback(Look)
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert seen == [handlers()]


def test_workers_that_load_data_neither_die_of_ctrl_c_nor_live_on(tmp_path):
    """They inherit the handler: Ctrl-C reaches them too, and they are ended by SIGTERM."""
    interrupt = Interrupt(lambda: "checkpoint")
    with interrupt.listening():
        interrupt.on_train_begin(None, None, None)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert not interrupt.heard


def test_all_processes_stop_where_one_has_heard_a_signal(tmp_path):
    """Another process has: this one learns of it before its step."""
    run = made(tmp_path)
    run._safety.guard._processes = type(run._launch.processes)(
        0, 2, lambda mine: [mine, mine], lambda flags: flags + torch.tensor([0.0, 0.0, 1.0])
    )
    with pytest.raises(TrainingInterrupted, match="stopped by a signal to another process"):
        run.train()
    assert problem_of(tmp_path / "checkpoint-1") is None
