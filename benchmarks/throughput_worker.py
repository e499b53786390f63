"""One side of the comparison, in a process of its own: a trainer that waits at each step's border.

    python throughput_worker.py JOB.json

The parent writes lines of JSON to standard input and reads such lines from standard output:
``{"run": k}`` lets the trainer go on for k optimiser steps, after which their records come back,
``{"reset": true}`` forgets the peak of memory. The real training loop is timed: from the border of
one step to that of the next lie collation, forward and backward pass, clipping, the optimiser, and
what the trainer logs. A side imports its own trainer only, so that memory is its own.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from datasets import Dataset
from throughput_models import checksum, make_model
from transformers import PreTrainedTokenizerFast, TrainerCallback

MATMUL_SECONDS = 0.3  # how long the matrix products are timed each time

# What TRL and transformers could default differently is said to both.
COMMON = {
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",  # both see the same batches
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "disable_dropout": True,
}


class Channel:
    """Lines of JSON to and from the parent; whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        """Write a message."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for a message; the process ends with its parent."""
        line = sys.stdin.readline()
        if not line:
            sys.exit("the parent is gone")
        message: dict[str, Any] = json.loads(line)
        return message


class Steps(TrainerCallback):
    """Times steps, and stops at their borders until the parent says go.

    Args:
        channel: To the parent.
        device: ``cpu`` or ``cuda``.
        hello: What is reported when the first step could start.
    """

    def __init__(self, channel: Channel, device: str, hello: dict[str, Any]) -> None:
        self.channel, self.device, self.hello = channel, device, hello
        self.allowed = 0
        self.records: list[dict[str, Any]] = []
        self.start = 0.0
        self.now: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Add a number to the record of the step that runs."""
        self.now[name] = self.now.get(name, 0) + value

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that everything is set up."""
        self.now = {}  # forward passes of the set-up, the reference's among them, are no step
        self.channel.send(**self.hello, process_peak_mb=process_peak_mb())
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the record of a step, and wait if no other may follow yet.

        After the last step too: to save and to tear down would cost the other side's last step. The
        parent ends the process.
        """
        self._synchronise()
        end = time.perf_counter()
        record = {name: _number(value) for name, value in self.now.items()}
        self.records.append(record | {"seconds": end - self.start})
        self.now, self.allowed = {}, self.allowed - 1
        if self.allowed:
            self.start = time.perf_counter()
            return
        self._report()
        self._wait()

    def _report(self) -> None:
        memory = {"peak_mb": peak_mb(self.device), "process_peak_mb": process_peak_mb()}
        self.channel.send(steps=self.records, **memory)
        self.records = []

    def _wait(self) -> None:
        while not self.allowed:
            message = self.channel.receive()
            if message.get("reset"):
                reset_peak(self.device)
            self.allowed = message.get("run", 0)
        self._synchronise()
        self.start = time.perf_counter()

    def _synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _number(value: Any) -> float | int:
    return value if isinstance(value, int) else float(value)


# Memory -------------------------------------------------------------------------------------------


def process_peak_mb() -> float:
    """Return the most memory the process ever held, set-up included; MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def reset_peak(device: str) -> None:
    """Forget the peak, so that set-up (loading, the reference) is not counted."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    """Return the peak since the last reset: of the GPU's allocator, or resident memory; MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no VmHWM in /proc/self/status")


# The trainers -------------------------------------------------------------------------------------


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Return the training arguments of both sides."""
    return COMMON | {
        "output_dir": str(Path(job["folder"]) / job["side"]),
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch"],
        "learning_rate": job["learning_rate"],
        "max_length": job["max_length"],
        "bf16": job["precision"] == "bf16-autocast",
        "use_cpu": job["device"] == "cpu",
        "dataloader_pin_memory": job["device"] == "cuda",
        "seed": job["seed"],
    }


def prefopt_trainer(job: dict[str, Any], model: Any, tokenizer: Any, steps: Steps) -> Any:
    """Return our trainer."""
    from prefopt import PreferenceConfig, PreferenceTrainer

    fields = arguments(job) | {"loss_type": job["loss"]} | job["extra"]
    if job["loss"] != "orpo":
        fields = {"precompute_ref_batch_size": 2} | fields  # the peak is that of training

    class Counting(PreferenceTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(model, inputs, *args, **kwargs)
            steps.add("positions", _count(inputs, "input_ids"))
            steps.add("head_positions", _count(inputs, "predict_positions"))
            steps.add("loss", loss)
            return loss

    return Counting(
        model,
        args=PreferenceConfig(**fields),
        train_dataset=Dataset.from_list(_rows(job)),
        processing_class=tokenizer,
        callbacks=[steps],
    )


def _count(inputs: Any, name: str) -> int:
    """Return how many numbers the rows of some batches hold in a field of their layouts."""
    rows = [
        texts.tokens
        for batch in inputs["batches"]
        for texts in (batch.texts, batch.mismatched)
        if texts is not None
    ]
    return sum(getattr(row, name).numel() for row in rows)


def trl_trainer(job: dict[str, Any], model: Any, tokenizer: Any, steps: Steps) -> Any:
    """Return TRL's trainer of the loss, at its defaults but for what both are told."""
    fields = arguments(job) | job["extra"]
    cached = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 2}
    base: Any
    config: Any
    if job["loss"] == "dpo":
        from trl import DPOConfig as config
        from trl import DPOTrainer as base

        fields |= cached
    elif job["loss"] == "kto":
        from trl import KTOConfig as config
        from trl import KTOTrainer as base

        # The thumbs of the same pairs.
        fields |= cached | {"per_device_train_batch_size": 2 * job["batch"]}
    else:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from trl.experimental.orpo import ORPOConfig as config
        from trl.experimental.orpo import ORPOTrainer as base

        fields |= {"remove_unused_columns": False}  # or it says that it sets this
    _count_trl_positions(model, steps)

    class Counting(base):  # type: ignore[misc,valid-type]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            steps.add("loss", loss)
            if job["loss"] == "orpo":
                metrics = self._stored_metrics["train"]
                odds = self.beta * metrics["log_odds_ratio"][-1]
                steps.add("loss_of_completions", -metrics["logps/chosen"][-1] - odds)
            return loss

    return Counting(
        model,
        args=config(**fields),
        train_dataset=Dataset.from_list(_rows(job)),
        processing_class=tokenizer,
        callbacks=[steps],
    )


def _count_trl_positions(model: Any, steps: Steps) -> None:
    """Count what passes the transformer, and what passes the LM head, module or fused function."""
    from trl.trainer import utils

    def through_transformer(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        steps.add("positions", (args[0] if ids is None else ids).numel())

    def through_head(module: Any, args: Any) -> None:
        steps.add("head_positions", args[0].shape[:-1].numel())

    model.base_model.register_forward_pre_hook(through_transformer, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(through_head)
    fused = getattr(utils, "_ChunkedLogProbFunction", None)
    if fused is None:
        return

    class Counted:
        @staticmethod
        def apply(hidden: Any, *args: Any) -> Any:
            steps.add("head_positions", hidden.shape[:-1].numel())
            return fused.apply(hidden, *args)

    utils._ChunkedLogProbFunction = Counted


def _rows(job: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(Path(job["rows"]).read_text())
    return rows


def record_gradient_norms(trainer: Any, steps: Steps) -> None:
    """Keep the norm of each step's gradient before it is clipped: logs are rounded and rare."""
    clip: Callable[..., Any] = trainer.accelerator.clip_grad_norm_

    def recording(*args: Any, **kwargs: Any) -> Any:
        norm = clip(*args, **kwargs)
        steps.add("grad_norm", norm.detach())
        return norm

    trainer.accelerator.clip_grad_norm_ = recording


def packed_trainer(job: dict[str, Any], model: Any, tokenizer: Any, steps: Steps) -> Any:
    """Return transformers' trainer over packed rows."""
    import throughput_packed

    fields = arguments(job)
    model.train()
    if job["device"] == "cuda":
        model.cuda()
    for module in model.modules():  # the same dropout, none, as the other sides have
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return throughput_packed.packed_trainer(job | {"arguments": fields}, model, _rows(job), steps)


def attention_of(side: str, device: str) -> str:
    """Return the attention of a side; of TRL the fastest that it can use here."""
    from transformers.utils import is_flash_attn_2_available

    if side == "packed-fa2":
        from throughput_packed import ATTENTION

        return ATTENTION
    has_flash = side == "trl" and device == "cuda" and is_flash_attn_2_available()
    return "flash_attention_2" if has_flash else "sdpa"


def train(job: dict[str, Any], channel: Channel) -> None:
    """Set a trainer up, and train under the parent's control."""
    attention = attention_of(job["side"], job["device"])
    dtype = torch.bfloat16 if job["precision"] == "bf16-weights" else torch.float32
    model = make_model(job["size"], job["seed"], dtype=dtype, attention=attention)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["tokenizer"])
    hello = {"weights": checksum(model), "attention": attention}
    steps = Steps(channel, job["device"], hello)
    make = {
        "prefopt": prefopt_trainer,
        "before": prefopt_trainer,
        "trl": trl_trainer,
        "packed-fa2": packed_trainer,
    }[job["side"]]
    trainer = make(job, model, tokenizer, steps)
    steps.hello |= {
        "rows": len(trainer.train_dataset),
        "optimiser": str(trainer.args.optim.value),
        "layout": getattr(getattr(trainer, "scorer", None), "layout", "padded"),
    }
    record_gradient_norms(trainer, steps)
    trainer.train()


# The rate of matrix products ----------------------------------------------------------------------


def multiply(job: dict[str, Any], channel: Channel) -> None:
    """Time the products of an MLP, forward, whenever the parent asks; operations per second."""
    dtype = torch.float32 if job["precision"] == "float32" else torch.bfloat16
    tokens, hidden, mlp = job["tokens"], job["hidden"], job["mlp"]
    make = {"dtype": dtype, "device": job["device"]}
    torch.manual_seed(job["seed"])
    narrow, wide = torch.randn(tokens, hidden, **make), torch.randn(tokens, mlp, **make)
    up, down = torch.randn(hidden, mlp, **make), torch.randn(mlp, hidden, **make)
    wide_out, narrow_out = torch.empty_like(wide), torch.empty_like(narrow)
    channel.send(ready=True)
    while True:
        channel.receive()
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < MATMUL_SECONDS:
            torch.mm(narrow, up, out=wide_out)
            torch.mm(wide, down, out=narrow_out)
            done += 1
            if job["device"] == "cuda" and done % 8 == 0:
                torch.cuda.synchronize()
        if job["device"] == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        channel.send(flops_per_s=done * 4 * tokens * hidden * mlp / seconds)


def main() -> None:
    """Do the job in the file."""
    channel = Channel()
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    (multiply if job["side"] == "matmul" else train)(job, channel)


if __name__ == "__main__":
    main()
