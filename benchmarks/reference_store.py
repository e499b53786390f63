"""What does the reference store cost, and what does it save? Filled, used again, served, measured.

    python benchmarks/reference_store.py [--parts fill,start,serve,look] [--quick]

``fill``: seconds to compute the reference log-probs of pairs of Anthropic HH before training,
beside TRL 1.16's ``precompute_ref_log_probs`` at several batch sizes; all sides take turns, and
their values are compared. Then what the store's file needs, in bytes. ``start``: seconds to the
first step of a run, of the same run again, and of one that changes only the loss. ``serve``: the
share of a training step that looking up takes. ``look``: a store of a million pairs, read at
random. Every side and every run is a fresh process. Results go to
``benchmarks/results/reference_store.*``, after each part.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import throughput_data as data
from record import RESULTS, ROOT, environment, results_folder
from reference_store_report import write_results
from rich.console import Console
from throughput import started
from throughput_models import SIZES

WORKER = Path(__file__).with_name("reference_store_worker.py")
PARTS = ("fill", "start", "serve", "look")
SIDES = ("prefopt", "trl")

# Nats by which sums over a completion may differ: float32, in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-3}

# What a loss is called on both sides.
FIRST_LOSS, OTHER_LOSS = {"prefopt": "dpo", "trl": "sigmoid"}, {"prefopt": "ipo", "trl": "ipo"}

QUICK = {
    "size": "tiny",
    "pairs": 24,
    "trl_batches": [8, 2],
    "turns": 2,
    "steps": 3,
    "rows": 500,
    "threads": 1,
}

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)

Found = dict[str, Any]


def main() -> None:
    """Measure the parts that are asked for, and write what was found after each."""
    options = parse()
    record = environment(
        seed=options.seed,
        dtype="float32",
        threads=options.threads,
        allow_dirty=options.allow_dirty,
    )
    record["versions"]["sqlite"] = sqlite3.sqlite_version
    record |= {"size": options.size, "pairs": options.pairs, "batch": options.batch}
    if record["load_average_at_start"] > 0.5:
        console.print("[yellow]other work runs on this machine; times will be of no use")
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        measures: dict[str, Callable[[Bench], Found]] = {
            "fill": measure_fill,
            "start": measure_start,
            "serve": measure_serve,
            "look": measure_look,
        }
        for part in options.parts:
            with console.status(f"{part}: setting up") as bench.status:
                found[part] = measures[part](bench)
            write_results(options.out, options.name, record, found, console)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def parts(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= set(PARTS):
            raise argparse.ArgumentTypeError(f"parts are {', '.join(PARTS)}")
        return names

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    shared = Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--parts", type=parts, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rows")
    parser.add_argument("--size", choices=SIZES, default="17m")
    parser.add_argument("--pairs", type=int, default=2300, help="pairs of HH")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a training step")
    parser.add_argument(
        "--trl-batches",
        type=numbers,
        default=[8, 1, 2, 16],  # small ones pad less
        help="pairs of TRL's forward passes while it fills; the first is its default",
    )
    parser.add_argument("--turns", type=int, default=20, help="in which each side fills")
    parser.add_argument("--repeats", type=int, default=1, help="of filling")
    parser.add_argument("--steps", type=int, default=50, help="training steps of the part serve")
    parser.add_argument("--rows", type=int, default=1_000_000, help="pairs of the large store")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=shared, help="folder of shared data")
    parser.add_argument("--out", type=results_folder, default=RESULTS)
    parser.add_argument("--name", default="reference_store", help="of the results")
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(arguments)


class Bench:
    """What all parts share: the options, a scratch folder, the pairs, and how workers start.

    Args:
        options: The command line.
        scratch: A folder for everything that is written on the way.
    """

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.status: Any = None
        self._pairs: data.PairSet | None = None

    def say(self, text: str) -> None:
        """Show what is being done."""
        self.status.update(text)

    @property
    def pairs(self) -> data.PairSet:
        """The pairs of HH; drawn, and written for the workers, when first asked for."""
        if self._pairs is None:
            tokenizer = data.make_tokenizer(self.options.size, self.options.shared)
            tokenizer.save_pretrained(self.scratch / "tokenizer")
            self._pairs = data.draw_pairs(
                "hh", self.options.shared, tokenizer, self.options.pairs, self.options.seed
            )
            lines = [json.dumps(row) + "\n" for row in self._pairs.rows]
            (self.scratch / "rows.jsonl").write_text("".join(lines))
        return self._pairs

    def training(self, side: str, **more: Any) -> dict[str, Any]:
        """Return the job of a worker that has a trainer."""
        return {
            "side": side,
            "max_length": self.pairs.max_length,
            "rows": str(self.scratch / "rows.jsonl"),
            "tokenizer": str(self.scratch / "tokenizer"),
            "size": self.options.size,
            "batch": self.options.batch,
            "precompute_batch": None,
            "loss": FIRST_LOSS[side],
            "steps": 1,
        } | more

    @contextmanager
    def worker(self, job: dict[str, Any], folder: str) -> Any:
        """Start a worker; those of one folder and side find what earlier ones left there."""
        place = self.scratch / folder
        place.mkdir(exist_ok=True)
        common = {"threads": self.options.threads, "seed": self.options.seed}
        with started(common | job, place, WORKER) as worker:
            yield worker

    def once(self, job: dict[str, Any], folder: str) -> Found:
        """Return what a worker says that says one thing."""
        with self.worker(job, folder) as worker:
            said: Found = worker.receive()
            return said


# Filling ------------------------------------------------------------------------------------------


def measure_fill(bench: Bench) -> Found:
    """Fill on all sides, in turns; compare the values; weigh our file."""
    repeats = [_fill_once(bench, number) for number in range(bench.options.repeats)]
    sides = {
        name: {
            "seconds": _spread([repeat[name]["reference_seconds"] for repeat in repeats]),
            "cpu_seconds": _spread([repeat[name]["reference_cpu_seconds"] for repeat in repeats]),
            "forwards": repeats[0][name]["reference_forwards"],
            "completions": repeats[0][name]["completions_computed"],
            "largest_difference": max(repeat[name]["difference"] for repeat in repeats),
        }
        for name in repeats[0]
    }
    ours = sides["prefopt"]["seconds"]["median"]
    theirs = {name: side["seconds"]["median"] for name, side in sides.items() if name != "prefopt"}
    store = bench.scratch / "fill_0" / "run_prefopt" / "store" / "reference.sqlite"
    return {
        "pairs": bench.options.pairs,
        "turns": bench.options.turns,
        "repeats": bench.options.repeats,
        "sides": sides,
        "ratio_to_default": next(iter(theirs.values())) / ours,
        "ratio_to_best": min(theirs.values()) / ours,
        "storage": storage_of(store),
    }


def _fill_once(bench: Bench, number: int) -> Found:
    """Return what each side says after it filled, and how far its values are from ours."""
    folder = f"fill_{number}"
    jobs = {"prefopt": bench.training("prefopt", task="fill")}
    for batch in bench.options.trl_batches:
        jobs[f"TRL, batch {batch}"] = bench.training("trl", task="fill", precompute_batch=batch)
    said: Found = {}
    with ExitStack() as stack:
        workers = {}
        for name, job in jobs.items():
            # TRL's sides must not find each other's values.
            own = folder if job["side"] == "prefopt" else f"{folder}_{job['precompute_batch']}"
            workers[name] = stack.enter_context(bench.worker(job, own))
            workers[name].receive()
        for turn in range(1, bench.options.turns + 1):
            bench.say(f"fill: turn {turn} of {bench.options.turns}")
            last = turn == bench.options.turns
            until = 1e18 if last else 2 * bench.options.pairs * turn / bench.options.turns
            for name in list(workers) if turn % 2 else list(workers)[::-1]:
                if name not in said:
                    reply = workers[name].ask(until=until)
                    if reply["done"]:
                        said[name] = reply
    return compared({name: said[name] for name in jobs})  # who ends first comes first in ``said``


def compared(said: Found) -> Found:
    """Return what the sides say, with the largest difference of their values from ours; nats.

    Raises:
        SystemExit: If models or values differ.
    """
    if len({side["weights"] for side in said.values()}) > 1:
        raise SystemExit("the sides have different models")
    sums = {name: np.load(side["sums"]) for name, side in said.items()}
    ours = sums["prefopt"]
    for name, theirs in sums.items():
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, **TOLERANCE):
            raise SystemExit(f"the values of {name} differ from ours: {theirs[:3]}, {ours[:3]}")
        said[name]["difference"] = float(np.abs(ours - theirs).max())
    return said


def storage_of(store: Path) -> Found:
    """Return what a store's file needs, by table where this SQLite can tell; bytes."""
    connection = sqlite3.connect(store)
    completions, tokens = connection.execute(
        "SELECT count(*), sum(tokens) FROM completion"
    ).fetchone()
    try:
        tables = dict(connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name"))
    except sqlite3.OperationalError:  # built without dbstat
        tables = {}
    connection.close()
    total = store.stat().st_size
    return {
        "bytes": total,
        "completions": completions,
        "tokens": tokens,
        "tables": tables,
        "bytes_per_token": tables["piece"] / tokens if tables else None,
        "bytes_per_completion": tables["completion"] / completions if tables else None,
        "bytes_per_token_after_80_a_completion": (total - 80 * completions) / tokens,
    }


# Starting again -----------------------------------------------------------------------------------


def measure_start(bench: Bench) -> Found:
    """Run one step three times on each side: first, again, and with another loss only."""
    runs: dict[str, dict[str, Found]] = {}
    for run, losses in (
        ("first run", FIRST_LOSS),
        ("the same again", FIRST_LOSS),
        ("another loss", OTHER_LOSS),
    ):
        for side in SIDES:
            bench.say(f"start: {run} ({side})")
            job = bench.training(side, task="start", loss=losses[side])
            begin = time.perf_counter()
            said = bench.once(job, "start")
            runs.setdefault(run, {})[side] = said | {"process_seconds": time.perf_counter() - begin}
    check_starts(runs)
    return {"pairs": bench.options.pairs, "losses": [FIRST_LOSS, OTHER_LOSS], "runs": runs}


def check_starts(runs: dict[str, dict[str, Found]]) -> None:
    """Stop if the sides train differently, or if ours computed what the store had."""
    for run in ("first run", "the same again"):
        losses = [said["loss"] for said in runs[run].values()]
        if not np.allclose(losses, losses[0], atol=1e-4):
            raise SystemExit(f"the first losses differ ({run}): {losses}")
    for run in ("the same again", "another loss"):
        forwards = runs[run]["prefopt"]["reference_forwards"]
        if forwards:
            raise SystemExit(f"prefopt ran {forwards} reference forwards ({run})")


# Serving ------------------------------------------------------------------------------------------


def measure_serve(bench: Bench) -> Found:
    """Train some steps, and say what share of them is spent in looking up."""
    bench.say("serve: training")
    steps = min(bench.options.steps, bench.options.pairs // bench.options.batch)
    said = bench.once(bench.training("prefopt", task="serve", steps=steps), "serve")
    seconds = sum(said["seconds"])
    return said | {
        "seconds_per_step": _spread(said["seconds"]),
        "share_of_look_up": said["look_up_seconds"] / seconds,
        "share_of_serving": (said["look_up_seconds"] + said["sum_seconds"]) / seconds,
    }


def measure_look(bench: Bench) -> Found:
    """Build a large store, and read all of it at random from another process."""
    job = {"pairs": bench.options.rows, "large_store": str(bench.scratch / "large")}
    bench.say(f"look: building a store of {bench.options.rows:,} pairs")
    built = bench.once(job | {"side": "build", "task": "build"}, "look")
    bench.say("look: reading it at random")
    said = bench.once(job | {"side": "look", "task": "look"}, "look")
    seconds = [part["seconds"] for part in said["parts"]]
    rate = sum(part["pairs"] for part in said["parts"]) / sum(seconds)
    return said | {
        "pairs": bench.options.rows,
        "build_seconds": built["seconds"],
        "pairs_per_s": rate,
        "completions_per_s": 2 * rate,
        "pairs_per_s_of_parts": _spread(
            [part["pairs"] / part["seconds"] for part in said["parts"]]
        ),
        "after_mb": said["parts"][-1]["resident_mb"],
        "storage": storage_of(bench.scratch / "large" / "reference.sqlite"),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


if __name__ == "__main__":
    main()
