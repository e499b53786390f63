"""One side of the reference store's benchmark, in a process of its own.

    python reference_store_worker.py JOB.json

``task`` says what it does: ``fill`` computes the reference log-probs of all pairs before training,
pausing between forward passes for the other sides; ``start`` trains one step; ``serve`` trains some
and times what is looked up; ``build`` writes a synthetic store and ``look`` reads it at random. The
parent speaks in lines of JSON, as in ``throughput_worker.py``.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from throughput_models import checksum, make_model
from throughput_worker import COMMON, Channel
from transformers import PreTrainedTokenizerFast, TrainerCallback

# A window of random tokens is a text: cheap to make again from its number, and its own.
PROMPT_TOKENS = 128
SHORTEST, LONGEST = 4, 24  # tokens of a completion of the synthetic store
COMPLETIONS = 2  # of a pair
CHUNK = 20_000  # pairs that are written in one commit


# The reference of both trainers -------------------------------------------------------------------


class Passes:
    """Counts and times reference forward passes, and pauses between them while others have a turn.

    Args:
        channel: To the parent.
        turns: Whether the parent says how many completions may be computed until the next pause;
            else there are none.
    """

    def __init__(self, channel: Channel, turns: bool) -> None:
        self.channel = channel
        self.allowed = 0.0 if turns else float("inf")
        self.forwards = 0
        self.completions = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0  # of all threads: what other work on the machine changes least

    def before(self, completions: int) -> None:
        """Called before a forward pass of some completions."""
        if self.completions >= self.allowed:
            paused = time.perf_counter()
            self.channel.send(done=False)
            self.allowed = self.channel.receive()["until"]
            self.seconds -= time.perf_counter() - paused
        self.forwards += 1
        self.completions += completions

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts, but for the pauses."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start, cpu_start = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.cpu_seconds += time.process_time() - cpu_start

        return call

    def found(self) -> dict[str, Any]:
        """Return what was counted."""
        return {
            "reference_forwards": self.forwards,
            "completions_computed": self.completions,
            "reference_seconds": self.seconds,
            "reference_cpu_seconds": self.cpu_seconds,
        }


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Return the training arguments of both sides."""
    return COMMON | {
        "output_dir": str(Path(job["folder"]) / "run"),
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch"],
        "max_length": job["max_length"],
        "loss_type": job["loss"],
        "learning_rate": 1e-6,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": job["seed"],
    }


def rows_of(job: dict[str, Any]) -> Dataset:
    """Return the pairs as a dataset on disk: only what is made of such is cached by TRL."""
    folder = str(Path(job["folder"]) / "datasets")
    return load_dataset("json", data_files=job["rows"], split="train", cache_dir=folder)


def prefopt_trainer(job: dict[str, Any], passes: Passes, given: dict[str, Any]) -> Any:
    """Return our trainer, its store in the job's folder."""
    from prefopt import PreferenceConfig, PreferenceTrainer
    from prefopt.reference.live import ReferenceModel

    score = ReferenceModel.score

    def counted(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        passes.before(len(batch.lengths))
        return score(self, batch, *args, **kwargs)

    ReferenceModel.score = counted
    # From the fingerprint to the last commit.
    PreferenceTrainer._set_up_reference = passes.timed(PreferenceTrainer._set_up_reference)
    store = {"reference": "cached", "reference_cache_dir": str(store_folder(job))}
    return PreferenceTrainer(args=PreferenceConfig(**arguments(job), **store), **given)


def store_folder(job: dict[str, Any]) -> Path:
    """Return where our side keeps its store."""
    return Path(job["folder"]) / "store"


def trl_trainer(job: dict[str, Any], passes: Passes, given: dict[str, Any]) -> Any:
    """Return TRL's trainer."""
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import dpo_trainer

    compute = DPOTrainer.compute_ref_log_probs

    def counted(self: Any, model: Any, inputs: Any) -> Any:
        passes.before(len(inputs["input_ids"]))
        return compute(self, model, inputs)

    DPOTrainer.compute_ref_log_probs = counted
    # From the digest of the weights to the written columns.
    dpo_trainer.hash_module = passes.timed(dpo_trainer.hash_module)
    DPOTrainer._precompute_ref_logps = passes.timed(DPOTrainer._precompute_ref_logps)
    cached = {
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": job["precompute_batch"],
    }
    return DPOTrainer(args=DPOConfig(**arguments(job), **cached), **given)


def make_trainer(job: dict[str, Any], passes: Passes, *callbacks: Any) -> Any:
    """Return a side's trainer; the reference log-probs of all pairs are known afterwards."""
    given = {
        "model": make_model(job["size"], job["seed"], dtype=torch.float32, attention="sdpa"),
        "train_dataset": rows_of(job),
        "processing_class": PreTrainedTokenizerFast.from_pretrained(job["tokenizer"]),
        "callbacks": list(callbacks),
    }
    make = prefopt_trainer if job["side"] == "prefopt" else trl_trainer
    return make(job, passes, given)


# Filling ------------------------------------------------------------------------------------------


def fill(job: dict[str, Any], channel: Channel) -> None:
    """Compute the reference log-probs of all pairs, in turns, and write their sums to a file."""
    passes = Passes(channel, turns=True)
    channel.send(ready=True)
    passes.allowed = channel.receive()["until"]
    trainer = make_trainer(job, passes)
    sums = prefopt_sums(trainer) if job["side"] == "prefopt" else trl_sums(trainer)
    file = Path(job["folder"]) / "sums.npy"
    np.save(file, sums)
    channel.send(done=True, sums=str(file), weights=checksum(trainer.model), **passes.found())


def prefopt_sums(trainer: Any) -> Any:
    """Return the summed reference log-prob of chosen and rejected completion; (pairs, 2)."""
    from prefopt.data.prepared import completion_keys, read_examples

    look_up = trainer.references.store.look_up
    return np.array(
        [
            [
                logps.sum(dtype=np.float64)
                for logps in look_up(completion_keys(example.prompt_ids, example.completion_ids))
            ]
            for example in read_examples(trainer.train_dataset, with_kl=False)
        ]
    )


def trl_sums(trainer: Any) -> Any:
    """Return the same of TRL's columns; (pairs, 2)."""
    columns = [trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
    return np.array([list(column) for column in columns], dtype=np.float64).T


# Starting, and serving ----------------------------------------------------------------------------


class Steps(TrainerCallback):
    """Notes when training began, when each optimiser step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock: the collation of the first batch belongs to the first step."""
        self.ends.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())


def start(job: dict[str, Any], channel: Channel) -> None:
    """Train one step, and say when it ended."""
    passes, steps = Passes(channel, turns=False), Steps()
    import_module(
        "prefopt.training.trainer" if job["side"] == "prefopt" else "trl.trainer.dpo_trainer"
    )
    imported = time.perf_counter()
    trainer = make_trainer(job, passes, steps)
    made = time.perf_counter()
    loss = trainer.train().training_loss
    first = steps.ends[1]
    channel.send(
        loss=float(loss),
        trainer_seconds=made - imported,
        step_seconds=first - made,
        seconds=first - imported,
        **passes.found(),
    )


class Timed:
    """An object whose every call is timed.

    Args:
        timed: The object.
    """

    def __init__(self, timed: Any) -> None:
        self.timed = timed
        self.seconds = 0.0
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.timed, name)
        return partial(self._call, value) if callable(value) else value

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return result


def serve(job: dict[str, Any], channel: Channel) -> None:
    """Train some steps, and time what is looked up in the store and what becomes of it."""
    passes, steps = Passes(channel, turns=False), Steps()
    trainer = make_trainer(job, passes, steps)
    looked_up = Timed(trainer.references.store)
    served = Timed(trainer.references)
    trainer.references.logps = served.logps
    trainer.references.store = looked_up
    trainer.train()
    channel.send(
        steps=job["steps"],
        calls=looked_up.calls,
        look_up_seconds=looked_up.seconds,
        sum_seconds=served.seconds - looked_up.seconds,
        seconds=list(np.diff(steps.ends)),
    )


# A large store ------------------------------------------------------------------------------------


class Texts:
    """Pairs of a synthetic store: prompt and completions of each, made again from its number."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.rows = rows
        self.tokens = generator.integers(0, 50_000, rows * COMPLETIONS + PROMPT_TOKENS + LONGEST)
        self.lengths = generator.integers(SHORTEST, LONGEST + 1, rows * COMPLETIONS)

    def prompt(self, row: int) -> Any:
        """Return the token ids of a prompt; (PROMPT_TOKENS,)."""
        return self.tokens[row : row + PROMPT_TOKENS]

    def completion(self, row: int, place: int) -> Any:
        """Return the token ids of a completion; (n,)."""
        number = COMPLETIONS * row + place
        start = PROMPT_TOKENS + number
        return self.tokens[start : start + self.lengths[number]]

    def values(self, row: int, place: int) -> Any:
        """Return the log-probs that are stored for it: known by its number; (n,)."""
        number = COMPLETIONS * row + place
        return np.full(self.lengths[number], -float(number % 65_536), dtype=np.float32)


def open_store(job: dict[str, Any]) -> Any:
    """Return the synthetic store."""
    from prefopt.reference.store.logp_store import FileStore, open_database

    database = open_database(Path(job["large_store"]))
    assert database is not None  # a fresh folder
    return FileStore(database, "synthetic", {"name": "synthetic"}, {"by": "benchmark"})


def build(job: dict[str, Any], channel: Channel) -> None:
    """Write a store of many pairs, in the order of their numbers: keys are random."""
    from prefopt.data.prepared import completion_key

    texts, store = Texts(job["pairs"], job["seed"]), open_store(job)
    begin = time.perf_counter()

    def values(rows: range) -> Iterator[tuple[bytes, Any]]:
        for row in rows:
            for place in range(COMPLETIONS):
                key = completion_key(texts.prompt(row), texts.completion(row, place))
                yield key, texts.values(row, place)

    for first in range(0, texts.rows, CHUNK):
        store.add(list(values(range(first, min(first + CHUNK, texts.rows)))))
    store.finish()
    channel.send(seconds=time.perf_counter() - begin)


def look(job: dict[str, Any], channel: Channel) -> None:
    """Look up all pairs once in random order, as training does; note rate and memory."""
    from prefopt.data.prepared import completion_key

    texts, store = Texts(job["pairs"], job["seed"]), open_store(job)
    order = np.random.default_rng(job["seed"] + 1).permutation(texts.rows)
    before = resident_mb()
    parts = []
    for part in np.array_split(order, min(20, len(order))):
        begin = time.perf_counter()
        for row in part.tolist():
            prompt = texts.prompt(row)
            for place in range(COMPLETIONS):
                (found,) = store.look_up([completion_key(prompt, texts.completion(row, place))])
                if found is None or found[0] != texts.values(row, place)[0]:
                    sys.exit(f"completion {place} of pair {row} has {found}")
        seconds = time.perf_counter() - begin
        parts.append({"pairs": len(part), "seconds": seconds, "resident_mb": resident_mb()})
    channel.send(before_mb=before, parts=parts)


def resident_mb() -> float:
    """Return the resident memory of this process; MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no VmRSS in /proc/self/status")


def main() -> None:
    """Do the job in the file."""
    channel = Channel()
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    tasks = {"fill": fill, "start": start, "serve": serve, "build": build, "look": look}
    tasks[job["task"]](job, channel)


if __name__ == "__main__":
    main()
