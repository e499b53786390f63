"""A run that tells what it does, and saves slowly enough to be killed meanwhile."""

import hashlib
import math
import os
import resource
import signal
import time
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

import prefopt.training.checkpoints as checkpoints
from prefopt.training.interrupt import TrainingInterrupted
from prefopt.training.throughput import is_of_machine
from prefopt.training.weights import NonFiniteError
from tests.launches.engines import apply_fsdp_on_cpus, are_dtensors
from tests.models import tiny_rows
from tests.runs import trainer

STEPS = 18

CASES: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": "dpo"},
    "kto, accumulated": {"loss_type": "kto", "gradient_accumulation_steps": 2},
    "dpo, adapter, accumulated": {
        "loss_type": "dpo",
        "gradient_accumulation_steps": 2,
        "adapter": True,
    },
    "kto, adapter": {"loss_type": "kto", "adapter": True},
}


class Telling(TrainerCallback):
    """Tells of the end of steps and of saving."""

    def __init__(self, tell):
        self._tell = tell

    def on_train_begin(self, args, state, control, **kwargs):
        self._tell("begun", state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self._tell("step", state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self._tell("saved", state.global_step)


def slowly(module, name, delay_s):
    """Have a function wait before and after."""
    original = getattr(module, name)

    def slow(*args, **kwargs):
        time.sleep(delay_s)
        result = original(*args, **kwargs)
        time.sleep(delay_s)
        return result

    setattr(module, name, slow)


def made(folder, name, limit):
    """Return the trainer of a case."""
    options = dict(CASES[name])
    adapter = options.pop("adapter", False)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    kind = "unpaired" if options["loss_type"] == "kto" else "paired"
    accumulated = options.get("gradient_accumulation_steps", 1)
    torch.manual_seed(0)
    return trainer(
        folder,
        tiny_rows(40, kind),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4) if adapter else None,
        per_device_train_batch_size=8 // accumulated // processes,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=limit,
        logging_steps=4,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        ddp_find_unused_parameters=False,
        reference_cache_dir=str(folder / "store"),
        **options,
    )


def train(folder, name, resume, limit, delay_s, environment, tell, spoil=False):
    """Train a case to its end, telling what is done; at last the weights and the log."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        apply_fsdp_on_cpus()
    if delay_s:
        slowly(torch, "save", delay_s)
        slowly(checkpoints, "write_manifest", delay_s)
        slowly(checkpoints, "delete_older", delay_s)
    run = made(folder, name, limit)
    save = run._save_checkpoint

    def save_and_tell(*args, **kwargs):
        tell("saving", run.state.global_step)
        save(*args, **kwargs)

    run._save_checkpoint = save_and_tell
    run.add_callback(Telling(tell))
    if spoil and environment["RANK"] == "1":
        add_loss = run._safety.guard.add_loss
        run._safety.guard.add_loss = lambda loss: add_loss(
            loss * math.nan if run.state.global_step == 2 else loss
        )
    try:
        run.train(resume_from_checkpoint=resume or None)
    except TrainingInterrupted as stopped:
        return tell("stopped", (str(stopped), stopped.exit_code))
    except NonFiniteError as error:
        return tell("not finite", str(error))
    digest = hashlib.sha256()
    for weight in run.model.parameters():
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        digest.update(whole.detach().numpy().tobytes())
    log = [
        {key: value for key, value in entry.items() if not is_of_machine(key)}
        for entry in run.state.log_history
    ]
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return tell("done", (digest.hexdigest(), log, world, are_dtensors(run) if world > 1 else False))


def train_on_full_disk(folder, name, largest, tell):
    """Train a case on a disk that takes no more than so much of a file from the second step on."""
    torch.set_num_threads(1)
    run = made(folder, name, limit=1)

    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    run.add_callback(Fill)
    try:
        run.train()
    except checkpoints.CheckpointError as error:
        tell("cannot", str(error))
    else:
        tell("could", "")
