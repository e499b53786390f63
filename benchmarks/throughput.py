"""How fast, and in how much memory, does prefopt train where TRL does? Side by side, step by step.

    python benchmarks/throughput.py --size 17m,135m --loss dpo,kto,orpo --data hh --steps 20

Both trainers train the same random model on the same pairs in the same batches, each in a process
of its own. They take turns, one optimiser step (``--turn``) each, while the other waits, and the
rate of matrix products is measured in between, so that whatever else the machine does meets all
three. Reference log-probs are computed before the first step on both sides. A batch of 8 means 8
pairs: for KTO, TRL gets their 16 thumbs. TRL 1.16: DPOTrainer, KTOTrainer, experimental
ORPOTrainer. The table, all numbers and charts go to ``benchmarks/results/throughput_*``.

On a GPU (both in bfloat16 autocast over float32 weights, which is the default of both):

    python benchmarks/throughput.py --device cuda --size qwen2.5-0.5b,llama-3.2-1b --batch 16 \
        --against trl,packed-fa2

``packed-fa2`` is transformers' Trainer over rows without padding (``throughput_packed.py``);
``before`` is prefopt as another checkout has it (``--before FOLDER``), to see what a change does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import throughput_data as data
from record import RESULTS, ROOT, environment, results_folder
from rich.console import Console
from throughput_flops import step_flops, useful_work
from throughput_models import SIZES, shape_of
from throughput_report import summarise, write_results

SIDES = ("prefopt", "trl", "packed-fa2", "before")
LOSSES = ("dpo", "kto", "orpo")
WORKER = Path(__file__).with_name("throughput_worker.py")

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)


def main() -> None:
    """Compare every combination of size, loss and data, and write what was found."""
    options = parse()
    record = environment(
        seed=options.seed,
        dtype=options.precision,
        threads=options.threads,
        allow_dirty=options.allow_dirty,
    )
    record |= {
        "batch": f"{options.batch} pairs",
        "learning_rate": options.learning_rate,
        "prefopt_args": options.prefopt_args,
        "note": options.note,
    }
    if options.device == "cpu" and record["load_average_at_start"] > 0.5:
        # Threads that wait for one that is not scheduled: a step was seen to take 8 times as long.
        console.print("[yellow]other work runs on this machine; times will be of no use")
    results: list[dict[str, Any]] = []
    for size in options.size:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = data.make_tokenizer(size, options.shared)
            tokenizer.save_pretrained(Path(scratch) / "tokenizer")
            for name in options.data:
                for loss in options.loss:
                    results.append(compare(options, size, loss, name, tokenizer, Path(scratch)))
                    write_results(options.out, options.name, record, results, console)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def several(*allowed: str) -> Any:
        def read(text: str) -> list[str]:
            names = text.split(",")
            for name in names:
                if name not in allowed:
                    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
            return names

        return read

    parser.add_argument("--size", type=several(*SIZES), default=["17m"], help=", ".join(SIZES))
    parser.add_argument("--loss", type=several(*LOSSES), default=["dpo"], help=", ".join(LOSSES))
    parser.add_argument("--data", type=several(*data.MAX_LENGTH), default=["hh"])
    parser.add_argument("--steps", type=int, default=20, help="timed optimiser steps of each side")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--turn", type=int, help="steps before the other side's turn; 1 on CPU")
    parser.add_argument("--batch", type=int, default=8, help="pairs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bf16-autocast", "bf16-weights"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--prefopt-args", type=json.loads, default={}, help="JSON, for our config")
    parser.add_argument("--trl-args", type=json.loads, default={}, help="JSON, for TRL's config")
    parser.add_argument(
        "--against", type=several(*SIDES[1:]), default=["trl"], help=", ".join(SIDES[1:])
    )
    parser.add_argument("--before", type=Path, help="a checkout of prefopt, for --against before")
    parser.add_argument("--only", choices=SIDES, help="one side alone")
    parser.add_argument(
        "--apart", action="store_true", help="one side after the other, where memory is short"
    )
    parser.add_argument("--shared", type=Path, default=_shared(), help="folder of shared data")
    parser.add_argument("--out", type=results_folder, default=RESULTS)
    parser.add_argument("--name", help="of the results; default: size, loss and data")
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.precision = options.precision or ("bf16-autocast" if on_gpu else "float32")
    options.turn = options.turn or (5 if on_gpu else 1)
    if ("before" in options.against) != (options.before is not None):
        parser.error("--against before and --before FOLDER go together")
    if "packed-fa2" in options.against and options.loss != ["dpo"]:
        parser.error("packed-fa2 trains dpo alone: --loss dpo")
    options.name = options.name or "_".join(
        "-".join(names) for names in (options.size, options.loss, options.data)
    )
    return options


def _shared() -> Path:
    return Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))


# One comparison -----------------------------------------------------------------------------------


def compare(
    options: argparse.Namespace, size: str, loss: str, name: str, tokenizer: Any, scratch: Path
) -> dict[str, Any]:
    """Let both sides train, in turns, and return what was measured."""
    steps = options.warmup + options.steps
    pairs = data.draw_pairs(name, options.shared, tokenizer, steps * options.batch, options.seed)
    shape = shape_of(size)
    texts = data.mismatched(pairs.texts, options.batch) if loss == "kto" else pairs.texts
    texts = [data.cut(text, pairs.max_length) for text in texts]
    batches = [texts[i : i + options.batch] for i in range(0, len(texts), options.batch)]
    work = [useful_work(batch) for batch in batches]
    flops = [step_flops(shape, *step) for step in work]
    trained = sorted(step[0].tokens for step in work)
    sides = [options.only] if options.only else ["prefopt", *options.against]
    job = {
        "size": size,
        "loss": loss,
        "batch": options.batch,
        "steps": steps,
        "precision": options.precision,
        "device": options.device,
        "threads": options.threads,
        "seed": options.seed,
        "learning_rate": options.learning_rate,
        "max_length": pairs.max_length,
        "tokenizer": str(scratch / "tokenizer"),
        "tokens": trained[len(trained) // 2],
        "hidden": shape.hidden,
        "mlp": shape.mlp,
    }
    extra = {"prefopt": options.prefopt_args, "trl": options.trl_args}
    extra["before"] = options.prefopt_args
    title = f"{size} {loss} {name}"
    hello: dict[str, dict[str, Any]] = {}
    take = Take(sides, title)
    with ExitStack() as stack, console.status(f"{title}: setting up") as status:

        def start(side: str) -> Worker:
            own = job | {"side": side, "extra": extra.get(side, {})}
            if side == "before":
                own["path"] = str(options.before.resolve())
            if side in SIDES:
                rows = data.rows_for(side, loss, pairs, options.batch)
                own["rows"] = str(scratch / f"rows_{side}.json")
                Path(own["rows"]).write_text(json.dumps(rows))
            return stack.enter_context(started(own, scratch))

        matmul = start("matmul")
        matmul.receive()
        for group in [[side] for side in sides] if options.apart else [sides]:
            workers = {}
            for side in group:  # one after the other: their threads would wait for each other's
                workers[side] = start(side)
                hello[side] = workers[side].receive()
            check_same_start(hello)
            take.run(workers, matmul, options, status)
            for worker in workers.values():
                worker.end()
    return {
        "size": size,
        "loss": loss,
        "data": name,
        "batch": options.batch,
        "max_length": pairs.max_length,
        "steps": options.steps,
        "warmup": options.warmup,
        "shape": shape._asdict(),
        "hello": {side: hello[side] for side in sides},
        "useful": {
            "trained_tokens": [step[0].tokens for step in work],
            "scored_tokens": [step[1].tokens for step in work],
            "predictions": [step[0].predictions + step[1].predictions for step in work],
            "flops": flops,
            "texts_tokens": [_separate_tokens(batch) for batch in batches],
        },
        "apart": options.apart,
        **take.found(),
    } | summarise(take.found(), flops, options.batch, options.warmup)


def _separate_tokens(batch: list[Any]) -> int:
    """Return the tokens of all texts of a batch counted separately, padding not among them."""
    return sum(
        len(text.prompt) + len(completion)
        for text in batch
        for completion in (*text.completions, *text.mismatched)
    )


class Take:
    """The steps of both sides, taken in turns, and the rate of matrix products in between.

    Args:
        sides: Who is measured.
        title: What is measured, for people.
    """

    def __init__(self, sides: list[str], title: str) -> None:
        self.title = title
        self.measured: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        self.memory: dict[str, dict[str, float]] = {}
        self.rates: list[float] = []

    def run(
        self,
        workers: dict[str, "Worker"],
        matmul: "Worker",
        options: argparse.Namespace,
        status: Any,
    ) -> None:
        """Run all steps of these workers; the side that begins changes from round to round."""
        sides = list(workers)
        for side in sides if options.warmup else ():
            self._turn(workers, side, options.warmup)
        done = 0
        while done < options.steps:
            count = min(options.turn, options.steps - done)
            status.update(f"{self.title} ({', '.join(sides)}): step {done} of {options.steps}")
            for side in sides if (done // options.turn) % 2 == 0 else sides[::-1]:
                self._turn(workers, side, count, reset=done == 0)
                self.rates.append(matmul.ask(go=True)["flops_per_s"])
            done += count

    def _turn(
        self, workers: dict[str, "Worker"], side: str, count: int, reset: bool = False
    ) -> None:
        reply = workers[side].ask(run=count, reset=reset)
        self.measured[side] += reply.pop("steps")
        self.memory[side] = reply

    def found(self) -> dict[str, Any]:
        """Return everything that was measured."""
        return {
            "measured": self.measured,
            "memory": self.memory,
            "matmul_flops_per_s": self.rates,
        }


def check_same_start(hello: dict[str, dict[str, Any]]) -> None:
    """Stop if the sides do not train the same model with the same optimiser."""
    for what in ("weights", "optimiser"):
        found = {side: said[what] for side, said in hello.items() if side in SIDES}
        if len(set(found.values())) > 1:
            raise SystemExit(f"the sides differ in their {what}: {found}")


class Worker:
    """A process that is spoken to in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def end(self) -> None:
        """End the process, and its memory with it."""
        self.process.kill()
        self.process.wait()

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            SystemExit: If the process ended instead; with the end of what it said.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            end = "\n".join(self.log.read_text().splitlines()[-40:])
            raise SystemExit(f"{self.log.stem} ended with code {code}:\n{end}")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def started(job: dict[str, Any], scratch: Path, script: Path = WORKER) -> Iterator[Worker]:
    """Start a process that runs a script on a job, and end it afterwards."""
    file, log = scratch / f"{job['side']}.json", scratch / f"{job['side']}.log"
    folder = scratch / f"run_{job['side']}"
    file.write_text(json.dumps(job | {"folder": str(folder)}))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job["threads"]),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "PREFOPT_CACHE": str(folder / "store"),  # nobody finds what another run has computed
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    if "path" in job:
        environment["PYTHONPATH"] = job["path"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(script), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    worker = Worker(process, log)
    try:
        yield worker
    finally:
        worker.end()


if __name__ == "__main__":
    main()
