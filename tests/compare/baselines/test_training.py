"""What the trainers share: a signal ends training behind a checkpoint, from where it goes on."""

import json
import os
import signal
from pathlib import Path

import pytest
from transformers import TrainerCallback

from prefopt.compare.baselines import reward_model, training
from prefopt.training.interrupt import TrainingInterrupted


class SignalAt(TrainerCallback):
    """Sends this process a signal at a step."""

    def __init__(self, step):
        self._step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_to_the_same_end(
    fitted_start, toy_files, tmp_path, monkeypatch
):
    options = {
        "model": fitted_start,
        "dataset": toy_files["train"],
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "seed": 5,
    }
    whole, parted = ({**options, "output_dir": str(tmp_path / name)} for name in ("a", "b"))
    reward_model.train_reward_model(whole)
    real = training.train

    def stopped(trainer, resume, save, counts_anew):
        trainer.add_callback(SignalAt(3))
        real(trainer, resume, save, counts_anew)

    with monkeypatch.context() as patched:
        patched.setattr(reward_model, "train", stopped)
        with pytest.raises(TrainingInterrupted, match="checkpoint-4"):
            reward_model.train_reward_model(parted)
    reward_model.train_reward_model(parted, resume=True)
    logs = [
        json.loads(Path(its["output_dir"], "trainer_state.json").read_text())["log_history"]
        for its in (whole, parted)
    ]
    for name in ("loss", "num_tokens", "accuracy"):
        one, other = ([entry[name] for entry in log if name in entry] for log in logs)
        assert len(one) == 8
        assert one == pytest.approx(other, rel=1e-5)


def test_a_start_that_is_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter"):
        training.adapter_target(str(tmp_path))
