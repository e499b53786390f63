"""Two settings of a CPU process, made while it trains: denormal floats, and memory that is freed.

Denormals: once a policy separates a pair well its gradients become tiny, then denormal (below
1e-38), and a CPU multiplies denormals at a fraction of its speed: the step of a saturated batch
takes twice as long. As zeros they change nothing that a float32 sum could hold.

Freed memory: glibc returns a large tensor to the kernel when it is freed, and the next one of its
size is mapped page by page, each page zeroed at its first touch: 300,000 page faults in a step of
ten layers of SmolLM2-135M's shape on 2000 tokens. Elementwise products of that step took seven
times as long as on pages that were there, and the step a tenth longer; peak memory was larger too,
not smaller.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

# More than any platform's `fenv_t`.
_ENVIRONMENT_BYTES = 128

_OPENMP = re.compile(r"/lib[gi]?omp\d?[^/]*\.so[^/]*$")

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4

_NEVER = -1
# What glibc's own thresholds grow to in a process that has freed large blocks; once set they no
# longer grow.
_LARGEST_THRESHOLD = 32 << 20
_DEFAULT_MMAP_MAX = 65_536

_heap_is_kept = False  # the settings belong to the process


@contextmanager
def set_up_for(device: torch.device) -> Iterator[None]:
    """Have both settings until the context ends, where that is the device of a model."""
    if device.type != "cpu":
        yield
        return
    with denormals_flushed(), heap_kept():
        yield


def activations_on_cpu() -> AbstractContextManager[Any]:
    """Keep what a backward pass needs in CPU memory until then."""
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Treat denormals as zero, in this thread and in those of torch's pool, until the context ends.

    ``torch.set_flush_denormal`` alone reaches threads that are started later, and those of the pool
    have been started long before. Where the pool cannot be reached (no glibc, no OpenMP library
    loaded) only this thread changes.
    """
    before = _environment()
    if not torch.set_flush_denormal(True):  # a processor that cannot
        yield
        return
    _set_in_pool(_environment())
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        _set_in_pool(before)


def _environment() -> ctypes.Array[ctypes.c_char] | None:
    """Return this thread's floating-point environment; None where the C library has none."""
    buffer = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
    with suppress(OSError, AttributeError):
        if ctypes.CDLL("libm.so.6").fegetenv(buffer) == 0:
            return buffer
    return None


def _set_in_pool(environment: ctypes.Array[ctypes.c_char] | None) -> None:
    """Set the floating-point environment of every thread of the OpenMP pool."""
    if environment is None:
        return
    with suppress(OSError, AttributeError):
        set_environment = ctypes.cast(ctypes.CDLL("libm.so.6").fesetenv, ctypes.c_void_p)
        for library in _openmp_libraries(Path("/proc/self/maps").read_text()):
            # GOMP_parallel(function, argument, threads, flags) runs the function in each thread;
            # Intel's and LLVM's libraries have it too.
            ctypes.CDLL(library).GOMP_parallel(
                set_environment, environment, torch.get_num_threads(), 0
            )


def _openmp_libraries(maps: str) -> set[str]:
    """Return the files of GNU's, Intel's and LLVM's library among those that a process mapped."""
    # Most lines are of other files: a search of the whole text took 14 ms, at each start and end.
    files = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "omp" in line}
    return {file for file in files if _OPENMP.search(file)}


@contextmanager
def heap_kept() -> Iterator[None]:
    """Keep freed memory in the process until the context ends, then return it to the kernel.

    Nothing changes where the C library is not glibc, or inside another such context.
    """
    global _heap_is_kept
    libc = _glibc()
    if libc is None or _heap_is_kept:
        yield
        return
    _heap_is_kept = True
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)  # read as unsigned: larger than any heap
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        _heap_is_kept = False
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
