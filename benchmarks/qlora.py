"""How fast, and in how much memory, does QLoRA DPO train beside TRL's, by the command line?

    python benchmarks/qlora.py --model /tmp/smollm2 --steps 12 --batch 4

Both sides are started as a user would, ``prefopt train`` and ``trl dpo``, with the same options:
``--load_in_4bit --use_peft``, the same rows in the same order, the same LoRA. They take turns, one
optimiser step each, so that whatever else the machine does meets both; ratios are those of
neighbouring steps. Reference log-probs are computed before the first step on both sides (TRL:
``--precompute_ref_log_probs``). The model is a folder: ``benchmarks/smollm2.py`` makes that of
SmolLM2-135M from the package index. The results go to ``benchmarks/results/qlora.{json,md,png}``,
written again after each turn.
"""

import argparse
import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import matplotlib as mpl
import numpy as np
from record import RESULTS, ROOT, environment, results_folder
from rich.console import Console
from throughput import Worker, started
from throughput_data import draw_pairs
from transformers import AutoTokenizer

mpl.use("Agg")

import matplotlib.pyplot as plt

SIDES = ("prefopt", "trl")
WORKER = Path(__file__).with_name("qlora_worker.py")
# What both command lines are told, whatever they train.
SAME: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": "true",
    "gradient_checkpointing": "false",
    "bf16": "false",
    "use_cpu": "true",
    "dataloader_pin_memory": "false",
}
COLOURS = {"prefopt": "#2a6f97", "trl": "#c9ada7"}

console = Console(stderr=True)


def main() -> None:
    """Let both command lines train, in turns, and write what was found."""
    options = parse()
    record = environment(
        seed=options.seed,
        dtype=f"{options.quantise} base, {options.dtype} computation and adapter",
        threads=options.threads,
        allow_dirty=options.allow_dirty,
    )
    record |= {"batch": f"{options.batch} pairs", "note": options.note}
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    count = (options.warmup + options.steps) * options.batch
    pairs = draw_pairs("hh", options.shared, tokenizer, count, options.seed)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        rows = Path(scratch) / "rows"
        rows.mkdir()
        lines = [json.dumps(row) for row in pairs.rows]
        (rows / "train.jsonl").write_text("\n".join(lines) + "\n")
        workers: dict[str, Worker] = {}
        hello = {}
        for side in SIDES:
            job = {"side": side, "threads": options.threads, "device": "cpu"}
            job["argv"] = command(options, side, rows, pairs.max_length, Path(scratch))
            console.print(f"{side}: {' '.join(job['argv'])}", markup=False)
            workers[side] = stack.enter_context(started(job, Path(scratch), WORKER))
            hello[side] = workers[side].receive()
        check_same_start(hello)
        take(options, record, workers, hello)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--quantise", choices=("nf4", "fp4", "8bit"), default="nf4")
    parser.add_argument("--steps", type=int, default=12, help="timed optimiser steps of each side")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--batch", type=int, default=4, help="pairs")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA, on all linear layers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--out", type=results_folder, default=RESULTS)
    parser.add_argument("--name", default="qlora")
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    return parser.parse_args(arguments)


def command(
    options: argparse.Namespace, side: str, rows: Path, max_length: int, scratch: Path
) -> list[str]:
    """Return the arguments of ``prefopt train`` or ``trl dpo``; all but the last are both's."""
    quantise = ["--load_in_8bit"]
    if options.quantise != "8bit":
        quantise = ["--load_in_4bit", "--bnb_4bit_quant_type", options.quantise]
    both = SAME | {
        "model_name_or_path": options.model,
        "dataset_name": str(rows),
        "output_dir": str(scratch / f"run_{side}" / "out"),
        "dtype": options.dtype,
        "lora_r": options.rank,
        "lora_alpha": 2 * options.rank,
        "max_length": max_length,
        "max_steps": options.warmup + options.steps,
        "per_device_train_batch_size": options.batch,
        "precompute_ref_batch_size": 2,
        "learning_rate": 1e-4,
        "seed": options.seed,
    }
    words = [word for name, value in both.items() for word in (f"--{name}", str(value))]
    words += [*quantise, "--use_peft", "--lora_target_modules", "all-linear"]
    return [*words, "--precompute_ref_log_probs"] if side == "trl" else words


def check_same_start(hello: dict[str, dict[str, Any]]) -> None:
    """Stop if the sides do not train as many weights on as many quantised ones, or otherwise."""
    for what in ("trained_parameters", "quantised", "optimiser"):
        found = {side: said[what] for side, said in hello.items()}
        if len(set(found.values())) > 1:
            raise SystemExit(f"the sides differ in {what}: {found}")


# Measuring ----------------------------------------------------------------------------------------


def take(
    options: argparse.Namespace,
    record: dict[str, Any],
    workers: dict[str, Worker],
    hello: dict[str, Any],
) -> None:
    """Run the steps of both sides, the one that begins changing from round to round."""
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    memory: dict[str, dict[str, float]] = {}
    for number in range(options.warmup + options.steps):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            reply = workers[side].ask(run=1, reset=number == 0)
            steps[side] += reply.pop("steps")
            memory[side] = reply
        times = ", ".join(f"{side} {steps[side][-1]['seconds']:.1f} s" for side in SIDES)
        console.print(f"step {number + 1}: {times}")
        if number >= options.warmup:
            found = {"hello": hello, "steps": steps, "memory": memory}
            write(options, record, found | summarise(found, options.batch, options.warmup))


def summarise(found: dict[str, Any], batch: int, warmup: int) -> dict[str, Any]:
    """Return what the timed steps of both sides say."""
    seconds = {
        side: np.array([step["seconds"] for step in found["steps"][side][warmup:]])
        for side in SIDES
    }
    losses = {
        side: [step["loss"] for step in found["steps"][side] if "loss" in step] for side in SIDES
    }
    differences = [abs(a - b) for a, b in zip(*losses.values(), strict=True)]
    return {
        "sides": {
            side: {
                "pairs_per_s": _spread(batch / seconds[side]),
                "peak_mb": found["memory"][side]["peak_mb"],
                "process_peak_mb": found["memory"][side]["process_peak_mb"],
                "first_loss": losses[side][0] if losses[side] else None,
            }
            for side in SIDES
        },
        "speed_ratio": _spread(seconds["trl"] / seconds["prefopt"]),
        "memory_ratio": found["memory"]["prefopt"]["peak_mb"] / found["memory"]["trl"]["peak_mb"],
        "largest_loss_difference": max(differences, default=None),
        "first_loss_difference": differences[0] if differences else None,
    }


def _spread(values: Any) -> dict[str, float]:
    low, median, high = np.percentile(values, [20, 50, 80])
    return {"median": float(median), "p20": float(low), "p80": float(high)}


# Writing ------------------------------------------------------------------------------------------


def write(options: argparse.Namespace, record: dict[str, Any], found: dict[str, Any]) -> None:
    """Write all numbers, a table and a chart."""
    stem = options.out / options.name
    stem.with_suffix(".json").write_text(json.dumps(record | found, indent=1) + "\n")
    stem.with_suffix(".md").write_text(_markdown(options, record, found))
    _draw(found, stem.with_suffix(".png"))


def _markdown(options: argparse.Namespace, record: dict[str, Any], found: dict[str, Any]) -> str:
    rows = ["| | pairs/s (20th to 80th percentile) | peak memory | first loss |", "|-|-|-|-|"]
    for side in SIDES:
        its = found["sides"][side]
        rate = its["pairs_per_s"]
        loss = "-" if its["first_loss"] is None else f"{its['first_loss']:.6f}"
        rows.append(
            f"| {side} | {rate['median']:.3f} ({rate['p20']:.3f} to {rate['p80']:.3f}) "
            f"| {its['peak_mb']:,.0f} MB | {loss} |"
        )
    ratio = found["speed_ratio"]
    timed = len(found["steps"]["trl"]) - options.warmup
    packages = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return "\n".join(
        [
            f"# QLoRA DPO: `prefopt train` beside `trl dpo`, {Path(options.model).name}",
            "",
            f"{options.quantise}, LoRA of rank {options.rank} on all linear layers, "
            f"{options.batch} HH pairs a step, {timed} timed steps of each side in turns, "
            f"{record['dtype']}. {record['device']}, {record['threads_per_process']} threads, load "
            f"{record['load_average_at_start']} at the start; "
            + ", ".join(f"{name} {record['versions'][name]}" for name in packages)
            + f"; commit {record['commit'][:12]}, {record['date']}. {record['note']}".rstrip(),
            "",
            *rows,
            "",
            f"prefopt takes {ratio['median']:.2f} times as many pairs a second (20th to 80th "
            f"percentile of neighbouring steps: {ratio['p20']:.2f} to {ratio['p80']:.2f}) in "
            f"{found['memory_ratio']:.2f} times the memory. First losses differ by "
            f"{found['first_loss_difference'] or 0:.1e}. Both train "
            f"{found['hello']['trl']['trained_parameters']:,} parameters, ours in "
            f"{', '.join(found['hello']['prefopt']['trained_dtype'])}, TRL's in "
            f"{', '.join(found['hello']['trl']['trained_dtype'])}.",
            "",
        ]
    )


def _draw(found: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    names, colours = ["prefopt", "TRL"], [COLOURS[side] for side in SIDES]
    rates = [found["sides"][side]["pairs_per_s"] for side in SIDES]
    medians = [rate["median"] for rate in rates]
    errors = [
        [rate["median"] - rate["p20"] for rate in rates],
        [rate["p80"] - rate["median"] for rate in rates],
    ]
    axes[0].bar(names, medians, yerr=errors, color=colours, capsize=4)
    axes[0].set_title("pairs a second", fontsize=10)
    axes[1].bar(names, [found["sides"][side]["peak_mb"] / 1000 for side in SIDES], color=colours)
    axes[1].set_title("peak memory, GB", fontsize=10)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
