"""How long does a user wait, from the command to the saved model? Beside TRL.

    python benchmarks/end_to_end.py --model /tmp/smollm2 --kinds full,lora,qlora --pairs 24

``prefopt train`` and ``trl dpo`` get the same options and the same pairs of Anthropic HH in the
same order, and compute the reference before the first step. They run alone, one after the other,
``--repeats`` times, the one that begins changing. What is told: *all* from the start of the process
to the saved model; *start*, the part of it before training (imports, loading, preparation,
reference); *training* alone; and the most memory that the process ever held.
``benchmarks/smollm2.py`` makes the model's folder; ``--size 17m`` makes one with random weights
instead. The results go to ``benchmarks/results/end_to_end_*.{json,md}``, written again after each
run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import throughput_data as data
import torch
from qlora import SAME
from record import RESULTS, ROOT, environment, results_folder
from rich.console import Console
from throughput_models import SIZES, make_model
from transformers import AutoTokenizer

SIDES = ("prefopt", "trl")
KINDS = {
    "full": [],
    "lora": ["--use_peft"],
    "qlora": ["--use_peft", "--load_in_4bit", "--bnb_4bit_quant_type", "nf4"],
}
WORKER = Path(__file__).with_name("end_to_end_worker.py")

Found = dict[str, Any]
console = Console(stderr=True)


def main() -> None:
    """Run every kind on both sides, and write what was found."""
    options = parse()
    record = environment(
        seed=options.seed, dtype="float32", threads=options.threads, allow_dirty=options.allow_dirty
    )
    record |= {"pairs": options.pairs, "batch": options.batch, "note": options.note}
    name = options.size or options.model.name
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = options.model or _make_model(options.size, folder / "model", options.shared)
        tokenizer = AutoTokenizer.from_pretrained(model)
        pairs = data.draw_pairs("hh", options.shared, tokenizer, options.pairs, options.seed)
        (folder / "rows").mkdir()
        lines = [json.dumps(row) + "\n" for row in pairs.rows]
        (folder / "rows" / "train.jsonl").write_text("".join(lines))
        runs: list[Found] = []
        for kind in options.kinds:
            for number in range(options.repeats):
                for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                    argv = command(options, kind, side, model, folder, pairs.max_length)
                    runs.append({"kind": kind, "side": side} | run(argv, side, options, folder))
                    write(options.out / f"end_to_end_{name}", record, runs)


def parse() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="folder of the model and its tokenizer")
    what.add_argument("--size", choices=SIZES, help="a shape with random weights")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4, help="pairs")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shared", type=Path, default=_shared(), help="folder of shared data")
    parser.add_argument("--out", type=results_folder, default=RESULTS)
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    return parser.parse_args()


def _shared() -> Path:
    return Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))


def _make_model(size: str, folder: Path, shared: Path) -> Path:
    make_model(size, 0, dtype=torch.float32, attention="sdpa").save_pretrained(folder)
    data.make_tokenizer(size, shared).save_pretrained(folder)
    return folder


def command(
    options: argparse.Namespace, kind: str, side: str, model: Path, folder: Path, max_length: int
) -> list[str]:
    """Return the arguments of ``prefopt train`` or ``trl dpo``; all but the last are both's."""
    both = SAME | {
        "model_name_or_path": model,
        "dataset_name": folder / "rows",
        "output_dir": folder / "out",
        "dtype": "float32",
        "max_length": max_length,
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch,
        "learning_rate": 1e-5 if kind == "full" else 1e-4,
        "seed": options.seed,
    }
    if kind != "full":
        both |= {"lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
    words = [word for name, value in both.items() for word in (f"--{name}", str(value))]
    words += KINDS[kind]
    return [*words, "--precompute_ref_log_probs"] if side == "trl" else words


def run(argv: list[str], side: str, options: argparse.Namespace, folder: Path) -> Found:
    """Run a command line in a process of its own, nothing kept from others; return its times."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        job, found = Path(own) / "job.json", Path(own) / "found.json"
        told = {"side": side, "argv": argv, "threads": options.threads, "found": str(found)}
        job.write_text(json.dumps(told))
        environment = os.environ | {
            "OMP_NUM_THREADS": str(options.threads),
            "HF_DATASETS_CACHE": f"{own}/datasets",
            "PREFOPT_CACHE": f"{own}/store",
        }
        start = time.time()
        done = subprocess.run(
            [sys.executable, str(WORKER), str(job)], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{side} {' '.join(argv)}\n{done.stderr[-4000:]}")
        times: Found = json.loads(found.read_text())
    steps = [b - a for a, b in zip([times["begin"], *times["steps"]], times["steps"], strict=False)]
    taken = {
        "all": times["saved"] - start,
        "start": times["begin"] - start,
        "training": times["end"] - times["begin"],
        "step": statistics.median(steps),
        "peak_mb": times["peak_mb"],
        "losses": times["losses"],
        "trained": times["trained"],
        "optimiser": times["optimiser"],
    }
    console.print(f"{side}: {taken['all']:.1f} s, training {taken['training']:.1f} s")
    return taken


# Results ------------------------------------------------------------------------------------------


def compared(runs: list[Found]) -> list[Found]:
    """Return both sides of each kind beside each other: medians over repeats, and their ratios.

    Raises:
        SystemExit: If the sides did not train the same.
    """
    rows = []
    for kind in dict.fromkeys(run["kind"] for run in runs):
        of = {side: [r for r in runs if (r["kind"], r["side"]) == (kind, side)] for side in SIDES}
        if not all(of.values()):
            continue
        ours, theirs = (of[side][0] for side in SIDES)
        if any(ours[what] != theirs[what] for what in ("trained", "optimiser")):
            raise SystemExit(f"{kind}: the sides differ: {ours}, {theirs}")
        middle = {
            side: {
                name: statistics.median(run[name] for run in its)
                for name in ("all", "start", "training", "step", "peak_mb")
            }
            for side, its in of.items()
        }
        ratios = {name: middle["trl"][name] / value for name, value in middle["prefopt"].items()}
        apart = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        rows.append({"kind": kind, "sides": middle, "ratios": ratios, "losses_apart": apart})
    return rows


def write(file: Path, record: Found, runs: list[Found]) -> None:
    """Write numbers and table."""
    rows = compared(runs)
    numbers = {"record": record, "compared": rows, "runs": runs}
    file.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    file.with_suffix(".md").write_text(_table(record, rows))


def _table(record: Found, rows: list[Found]) -> str:
    lines = [
        "| trained | side | all, s | start, s | training, s | a step, s | peak MB | losses apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = (row["sides"][side] for side in SIDES)
        for label, its in (("prefopt", ours), ("TRL", theirs)):
            cells = [f"{its[name]:.1f}" for name in ("all", "start", "training", "step")]
            lines.append(
                f"| {row['kind']} | {label} | {' | '.join(cells)} | {its['peak_mb']:.0f} | |"
            )
        ratios = [f"{row['ratios'][name]:.1f}x" for name in ("all", "start", "training", "step")]
        memory = f"{1 / row['ratios']['peak_mb']:.2f}x"
        lines.append(
            f"| | **TRL takes** | {' | '.join(ratios)} | prefopt {memory} | "
            f"{row['losses_apart']:.1g} |"
        )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines += [
        "",
        f"Commit {record['commit'][:12]}, {record['date']}, {record['device']}, "
        f"{record['threads_per_process']} threads, {record['dtype']}, {record['pairs']} pairs of "
        f"Anthropic HH in batches of {record['batch']}, one epoch. {versions}. {record['note']}",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
