"""Memory stays with the process within, and goes back to the kernel afterwards."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: what earlier tests did to the heap would show.
MEASURED = """
import resource
import torch
from prefopt.engine.heap import heap_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        tensors = [torch.zeros(1 << 24) for _ in range(3)]  # 64 MiB each
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

faults()
before = faults()
small = resident()
with heap_kept():
    with heap_kept():  # filling a store while training
        faults()
    within, kept = faults(), resident()
print(before, within, small, kept, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_within_and_given_back_afterwards():
    root = Path(__file__).resolve().parents[2]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    output = subprocess.run(
        [sys.executable, "-c", MEASURED],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"PYTHONPATH": str(root)},
    )
    before, within, small, kept, end = map(int, output.stdout.split())
    pages = 10 * 3 * (64 << 20) // resource.getpagesize()
    assert before > pages / 100  # huge pages, where the kernel uses them, take one fault for 512
    assert within < before / 20
    assert kept > small + 150
    assert end < small + 50


def test_an_error_within_passes():
    from prefopt.engine.heap import heap_kept

    with pytest.raises(RuntimeError, match="stop"), heap_kept():
        raise RuntimeError("stop")
