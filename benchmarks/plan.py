"""What `prefopt plan` says a run will need, against what `prefopt train` then needs.

    python benchmarks/plan.py --folder /tmp/plan --smollm2 /tmp/smollm2 [--only full lora qlora kto]

Each shape is planned in one process and trained in another, both on a CPU with one thread. Seconds
are those of the processor, user and system, so that other work on the machine does not count: on an
idle machine a clock would show about the same. Memory is the most that was resident.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("PREFOPT_SHARED", Path(__file__).resolve().parent / "../../shared"))
ROWS = "data/preference/hh_helpful_base_test.jsonl.gz"


def shapes(folder: Path, smollm2: Path, rows: int) -> dict[str, list[str]]:
    """Return the options of each shape; what they name is made if it is not there."""
    small, pairs = folder / "17m", folder / "pairs.jsonl"
    if not small.is_dir():
        make_small(small, smollm2)
    make_rows(folder, rows)
    common = ["--use_cpu", "--report_to", "none", "--num_train_epochs", "1"]
    lora = [
        *("--model", str(smollm2), "--dataset", str(pairs), "--use_peft"),
        *("--per_device_train_batch_size", "2", "--max_length", "256", *common),
    ]
    return {
        "full": [
            *("--model", str(small), "--dataset", str(pairs), "--loss_type", "dpo"),
            *("--per_device_train_batch_size", "4", "--max_length", "512", *common),
        ],
        "lora": lora,
        "qlora": [*lora, "--load_in_4bit"],
        "kto": [
            *("--model", str(small), "--dataset", str(folder / "thumbs.jsonl")),
            *("--loss_type", "kto", "--per_device_train_batch_size", "4"),
            *("--gradient_accumulation_steps", "2", "--max_length", "1024", *common),
        ],
    }


def make_small(folder: Path, smollm2: Path) -> None:
    """Save a model of 17 million weights beside its embeddings, with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
    config = LlamaConfig(vocab_size=49152, num_attention_heads=6, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)


def make_rows(folder: Path, rows: int) -> None:
    """Write pairs of Anthropic HH, and a thumb for each of their answers in turn."""
    from prefopt.data import read_example

    with gzip.open(SHARED / ROWS, "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line, _ in zip(lines, range(rows), strict=False)]
    thumbs = []
    for number, pair in enumerate(pairs):
        example = read_example(pair, number)
        liked = number % 2 == 0
        completion = example.completions[0 if liked else 1]
        thumbs.append({"prompt": example.prompt, "completion": completion, "label": liked})
    for name, its in {"pairs": pairs, "thumbs": thumbs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in its))


def planned(options: list[str]) -> None:
    """Print the plan of a run as JSON, with the processor's clock in place of the wall's."""
    from prefopt.cli import plan as command
    from prefopt.training import planning, throughput, trials

    def told(plan: Any, gpu: Any = None) -> list[str]:
        times = plan.times
        return [
            json.dumps(
                {
                    "seconds": times.total,
                    "peak_gib": plan.peak_bytes / 2**30,
                    "of_step": plan.seconds_per_step,
                    "steps": plan.steps,
                    "start": times.start,
                    "reference": times.reference,
                    "training": times.steps,
                    "saving": times.saving,
                    "memory": [
                        plan.memory.weights,
                        plan.memory.optimizer,
                        plan.memory.step.at(plan.largest_batch),
                        plan.memory.process,
                    ],
                }
            ),
            *original(plan, gpu),
        ]

    original, command.lines_of = command.lines_of, told
    command._seconds_of_process = time.process_time
    planning.perf_counter = trials.perf_counter = time.process_time
    throughput.StepClock.of = classmethod(lambda cls, device: cls(time.process_time))
    sys.exit(command.main(options))


def trained(options: list[str]) -> None:
    """Train as the command does, and print what it took as JSON."""
    from prefopt.cli import main

    code = main(["train", *options])
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime
    print(json.dumps({"seconds": seconds, "peak_gib": used.ru_maxrss / 2**20}), flush=True)
    sys.exit(code)


def child(what: str, options: list[str], folder: Path) -> dict[str, Any]:
    """Return what a process of one kind found, that starts with an empty store."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFOPT_CACHE": str(folder / what)}
    argv = [sys.executable, __file__, what, *options]
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, flush=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    found: dict[str, Any] = json.loads(line)
    return found


def main() -> None:
    """Plan and train each shape, and print both side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--only", nargs="+", default=["full", "lora", "qlora", "kto"])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, options in shapes(args.folder, args.smollm2, args.rows).items():
        if name not in args.only:
            continue
        run = args.folder / name
        plan = child("planned", [*options, "--output_dir", str(run / "out")], run / "plan")
        real = child("trained", [*options, "--output_dir", str(run / "out")], run / "train")
        rows = [f"{key} {plan[key]:.2f} / {real[key]:.2f}" for key in ("seconds", "peak_gib")]
        print(f"{name}: planned / measured: {', '.join(rows)}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["planned"]:
        planned(sys.argv[2:])
    elif sys.argv[1:2] == ["trained"]:
        trained(sys.argv[2:])
    else:
        main()
