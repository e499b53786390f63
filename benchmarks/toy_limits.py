"""What keeps preference optimisation from the best reward? The toy world, one factor at a time.

    python benchmarks/toy_limits.py [--studies ladder,noise,...] [--jobs 2] [--quick]

In the toy world reference policy and true reward are known, so the best reward of any policy at
each KL is known too, and the distillation of the optimal policy shows that a model can get there.
The study ``ladder`` takes away, one after the other, what keeps DPO from it; ``alone`` takes one
thing away, ``back`` puts one back. Smaller studies ask what noise in labels, beta, temperature,
unpaired data and too little data do. Each run is done once and kept in ``--work``, so the script
goes on where it was stopped. Everything takes under two hours on two cores that do nothing else,
``--quick`` some minutes (and shows only that all works). Results go to
``benchmarks/results/toy_limits.{json,md,png}``, ``toy_limits_losses.png`` and
``toy_limits_studies.png``.
"""

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from record import RESULTS, environment, results_folder
from rich.console import Console
from rich.progress import Progress
from toy_limits_report import write_results
from toy_limits_studies import STUDIES, Study
from toy_limits_worker import Recipe, run, run_path
from toy_limits_world import Size, World, digest

QUICK = Size(fit_steps=60, start_samples=256, policy_samples=32, scale=1 / 50)
WORK = Path(tempfile.gettempdir()) / "prefopt-toy-limits"

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)


def main() -> None:
    """Do the runs that are not done yet, and write what was found."""
    options = parse()
    size = QUICK if options.quick else Size()
    record = environment(seed=0, dtype="float32", threads=1, allow_dirty=options.allow_dirty)
    record |= {"size": asdict(size), "jobs": options.jobs, "note": options.note}
    studies = [STUDIES[name] for name in options.studies.split(",")]
    folder = options.work / ("quick" if options.quick else "full")
    tasks = tasks_of(studies, options.seeds)
    errors = do_all(tasks, size, folder, options.jobs) if options.jobs else []
    found = {study.name: collect(study, options.seeds, size, folder) for study in studies}
    starts = {
        str(seed): World(seed, Recipe.hidden_size, size, folder) for seed in range(options.seeds)
    }
    frontiers = {name: world.frontier for name, world in starts.items()}
    write_results(options.out, studies, found, frontiers, record)
    if errors:
        sys.exit("\n".join(errors))


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", default=",".join(STUDIES), help="names, by commas")
    parser.add_argument(
        "--seeds", type=int, default=4, choices=range(1, 11), help="starts of each recipe"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs at a time; 0 to write what is done"
    )
    parser.add_argument("--quick", action="store_true", help="too small to show anything")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    parser.add_argument("--out", type=results_folder, default=RESULTS, help="folder of the results")
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    return parser.parse_args()


# Runs ---------------------------------------------------------------------------------------------


def tasks_of(studies: list[Study], seeds: int) -> list[tuple[str, Recipe, int]]:
    """Return label, recipe and seed of every run; one that several studies ask for comes once."""
    tasks = {}
    for seed in range(seeds):  # a first look at everything comes before the second seed
        for study in studies:
            for label, recipe in study.recipes.items():
                name = f"{study.name}: {label}, seed {seed}"
                tasks.setdefault(digest(asdict(recipe), seed), (name, recipe, seed))
    return list(tasks.values())


def do_all(tasks: list[tuple[str, Recipe, int]], size: Size, folder: Path, jobs: int) -> list[str]:
    """Do every run that is not done, several at a time; return what failed."""
    errors = []
    worlds = {(seed, recipe.hidden_size) for _, recipe, seed in tasks}
    workers = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=be_quiet, initargs=(folder / "logs",)
    )
    with workers, Progress(console=console) as progress:
        made = [workers.submit(World, *world, size, folder) for world in sorted(worlds)]
        for future in progress.track(as_completed(made), len(made), description="worlds"):
            future.result()
        done = {
            workers.submit(run, recipe, seed, size, folder): name for name, recipe, seed in tasks
        }
        for future in progress.track(as_completed(done), len(done), description="runs"):
            try:
                found = future.result()
            except Exception as error:  # one failure does not end the others
                errors.append(f"{done[future]}: {type(error).__name__}: {error}")
                console.print(f"[red]{errors[-1]}", highlight=False)
            else:
                share = f"{100 * found['share'][0]:.0f}%" if found["share"] else "too far"
                console.print(f"{done[future]}: {share} at KL {found['kl'][0]:.2f}")
    return errors


def be_quiet(folder: Path) -> None:
    """Let a worker compute with one thread, and print into a file of its own."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)


def collect(study: Study, seeds: int, size: Size, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what is done of a study: the runs of each recipe, by label."""
    found = {}
    for label, recipe in study.recipes.items():
        paths = [run_path(recipe, seed, size, folder) for seed in range(seeds)]
        found[label] = [json.loads(path.read_text()) for path in paths if path.exists()]
    return found


if __name__ == "__main__":
    main()
