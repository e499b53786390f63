"""Where the time of a training step goes: a profile of ``PreferenceTrainer`` on real pairs.

    python benchmarks/profile_step.py [--size 17m,135m] [--loss dpo] [--steps 4]

torch's profiler follows some steps of a real training run. Every operation counts for the part of a
step that called it, by the time it spends itself; what is left of the wall clock is Python. The
share of each part goes to ``benchmarks/results/profile.*``.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from record import RESULTS, ROOT, environment, results_folder
from rich.console import Console
from rich.table import Table
from throughput_data import draw_pairs, make_tokenizer
from throughput_models import make_model
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from prefopt import PreferenceConfig, PreferenceTrainer

WARM_UP = 2
PYTHON = "Python, and waiting"
ELEMENTWISE = "norms, rotary, activations, residuals"

# A part by what the name of an operation, or of one that called it, contains; the first that fits.
PARTS = (
    ("LM head and log-probs", ("_ChunkedLogps",)),
    ("attention", ("_FlashOnCPU", "scaled_dot_product", "varlen", "flex_attention")),
    ("optimiser and clipping", ("Optimizer.", "linalg_vector_norm", "_foreach")),
    ("collation", ("DataLoader",)),
    ("projections (matrix products)", ("aten::mm", "aten::addmm", "aten::linear")),
)


class Following(TrainerCallback):  # type: ignore[misc]
    """Profiles the steps after the warm-up."""

    def __init__(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.start = self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin after the warm-up, end with the last step."""
        if state.global_step == WARM_UP:
            self.profile.start()
            self.start = time.perf_counter()
        elif state.global_step == state.max_steps:
            self.seconds = time.perf_counter() - self.start
            self.profile.stop()


def part_of(event: Any) -> str:
    """Return the part of a step that an operation belongs to."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    for part, marks in PARTS:
        if any(mark in name for name in names for mark in marks):
            return part
    return ELEMENTWISE


def measure(size: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return the seconds of a step that each part takes."""
    tokenizer = make_tokenizer(size, arguments.shared)
    steps = WARM_UP + arguments.steps
    pairs = draw_pairs("hh", arguments.shared, tokenizer, steps * arguments.batch, arguments.seed)
    following = Following()
    trainer = PreferenceTrainer(
        make_model(size, arguments.seed, dtype=torch.float32, attention="sdpa"),
        args=PreferenceConfig(
            str(folder),
            loss_type=arguments.loss,
            max_steps=steps,
            per_device_train_batch_size=arguments.batch,
            max_length=pairs.max_length,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(pairs.rows),
        processing_class=tokenizer,
        callbacks=[following],
    )
    trainer.train()
    seconds: dict[str, float] = defaultdict(float)
    for event in following.profile.events():
        seconds[part_of(event)] += event.self_cpu_time_total / 1e6 / arguments.steps
    seconds[PYTHON] = max(following.seconds / arguments.steps - sum(seconds.values()), 0.0)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def table_of(results: dict[str, dict[str, float]]) -> str:
    """Return the shares as a table in Markdown."""
    parts = next(iter(results.values()))
    lines = [
        "| part of a step | " + " | ".join(results) + " |",
        "| --- |" + " ---: |" * len(results),
    ]
    for part in parts:
        shares = [of.get(part, 0.0) / sum(of.values()) for of in results.values()]
        lines.append(f"| {part} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="17m,135m")
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--steps", type=int, default=4, help="profiled steps, after two others")
    parser.add_argument("--batch", type=int, default=8, help="pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    shared = Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--out", type=results_folder, default=RESULTS)
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    arguments = parser.parse_args()
    circumstances = environment(
        seed=arguments.seed,
        dtype="float32",
        threads=arguments.threads,
        allow_dirty=arguments.allow_dirty,
    )
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            size: measure(size, arguments, Path(folder)) for size in arguments.size.split(",")
        }
    table = Table("part of a step", *results)
    for part in next(iter(results.values())):
        table.add_row(part, *(f"{of.get(part, 0.0):.3f} s" for of in results.values()))
    Console().print(table)
    record = {"environment": circumstances, "loss": arguments.loss, "seconds_per_step": results}
    (arguments.out / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "profile.md").write_text(table_of(results))


if __name__ == "__main__":
    main()
