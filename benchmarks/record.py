"""What every record of a benchmark says: commit, versions, device, dtype, threads, seed, load."""

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from prefopt.versions import versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    *("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy"),
    *("trl", "peft", "bitsandbytes"),
)


def results_folder(path: str) -> Path:
    """Return the folder that ``--out`` names, made before anything is measured for it."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(*, seed: int, dtype: str, threads: int, allow_dirty: bool) -> dict[str, Any]:
    """Return the circumstances of a measurement.

    Args:
        seed: The seed everything was drawn from.
        dtype: The dtype computed in.
        threads: Threads of each measured process.
        allow_dirty: Whether changed files may be measured; the record then lists them.

    Raises:
        SystemExit: If tracked files differ from the commit, unless that is allowed.
    """
    changed = _git("status", "--porcelain", "--untracked-files=no").splitlines()
    if changed and not allow_dirty:
        names = "\n".join(changed)
        sys.exit(f"the working tree differs from the commit (use --allow-dirty):\n{names}")
    return {
        "commit": commit(),
        "changed_files": [line[3:] for line in changed],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
        "device": ", ".join([_processor(), f"{os.cpu_count()} cores", *_gpus()]),
        "threads_per_process": threads,
        "dtype": dtype,
        "seed": seed,
        "load_average_at_start": round(os.getloadavg()[0], 1),
    }


def commit() -> str:
    """Return the commit that is checked out."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip()


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
