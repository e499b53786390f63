"""Start Python in several processes on a CPU, as users do with torchrun."""

import os
import subprocess
import sys
from collections.abc import Mapping

from tests.conftest import ROOT


def torchrun(processes: int) -> list[str]:
    """Return what starts a script, or ``-m`` and a module, in so many processes.

    It is not ``accelerate launch``, which starts one process where there is no GPU.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={processes}"]


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables for processes that find this checkout, have a thread each, and no GPU."""
    return dict(base) | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_script(
    *words: str, processes: int = 2, timeout_s: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, or ``-m`` and a module, in so many processes; one is started without torchrun.

    Args:
        *words: The script and its arguments.
        processes: How many.
        timeout_s: Seconds after which they are ended.
        **variables: Of the environment, beside those of ``environment``.
    """
    return subprocess.run(
        [*([sys.executable] if processes == 1 else torchrun(processes)), *words],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
