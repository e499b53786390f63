"""Denormals are zero and freed memory stays in the process while a CPU trains, not afterwards."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefopt.engine.cpu import _openmp_libraries, denormals_flushed, heap_kept

# In a process of its own: what earlier tests did to the heap would show.
MEASURED = """
import resource
import torch
from prefopt.engine.cpu import heap_kept

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


@pytest.mark.slow
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


def test_an_error_within_the_kept_heap_passes():
    with pytest.raises(RuntimeError, match="stop"), heap_kept():
        raise RuntimeError("stop")


def nonzero_products():
    """Return how many of a million products of small numbers are not 0, by all threads."""
    small = torch.full((1000, 1000), 1e-20)
    return int(torch.count_nonzero(small @ small))


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert nonzero_products() == 1_000_000  # the pool has started, and knows denormals
    yield
    torch.set_num_threads(threads)


def test_all_threads_flush_within_and_none_afterwards(two_threads):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    with denormals_flushed():
        assert nonzero_products() == 0
    assert nonzero_products() == 1_000_000


def test_libraries_of_openmp_are_known_by_their_files():
    place = "7f1c2a000000-7f1c2a021000 r-xp 00003000 fd:01 1234"
    names = ("torch/lib/libgomp.so.1", "a b/libiomp5.so", "lib/libomp-a1b2.so.5")
    others = ("libcompress.so", "libomp/other.so", "libgomp.py")
    lines = [f"{place}    /usr/{name}" for name in (*names, *others, *names)]
    text = "\n".join([*lines, f"{place} ", "7ffd000-7ffd100 rw-p 00000000 00:00 0    [stack]", ""])
    assert _openmp_libraries(text) == {f"/usr/{name}" for name in names}


def test_an_error_within_brings_denormals_back(two_threads):
    with pytest.raises(RuntimeError, match="stop"), denormals_flushed():
        raise RuntimeError("stop")
    assert nonzero_products() == 1_000_000
