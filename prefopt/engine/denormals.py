"""Flush denormal floats to zero while a CPU trains.

Once a pair is well told apart its gradients become tiny, then denormal (below 1e-38), and a CPU
multiplies denormals at a fraction of its speed: the step of a saturated batch takes twice as long.
As zeros they change nothing that a float32 sum could hold.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

# More than any platform's `fenv_t`.
_ENVIRONMENT_BYTES = 128


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Within it, denormals are zero in this thread and in those that torch computes with.

    ``torch.set_flush_denormal`` alone reaches the threads that are started later, and those of the
    pool have been started long before. Where the pool cannot be reached (no glibc, no OpenMP
    library in sight) only this thread changes.
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
    """Return this thread's floating-point environment; None where the C library has no such."""
    buffer = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
    with suppress(OSError, AttributeError):
        if ctypes.CDLL("libm.so.6").fegetenv(buffer) == 0:
            return buffer
    return None


def _set_in_pool(environment: ctypes.Array[ctypes.c_char] | None) -> None:
    """Have every thread of the OpenMP pool take over an environment."""
    if environment is None:
        return
    with suppress(OSError, AttributeError):
        set_environment = ctypes.cast(ctypes.CDLL("libm.so.6").fesetenv, ctypes.c_void_p)
        maps = Path("/proc/self/maps").read_text()
        for library in set(re.findall(r"\S*/lib[gi]?omp\d?[^/\s]*\.so\S*", maps)):
            # GOMP_parallel(function, argument, threads, flags) runs the function in each thread;
            # Intel's and LLVM's libraries have it too.
            ctypes.CDLL(library).GOMP_parallel(
                set_environment, environment, torch.get_num_threads(), 0
            )
