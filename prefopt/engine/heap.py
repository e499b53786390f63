"""Keep the heap of a CPU process between steps, where glibc would give it back and fetch it again.

A large tensor that is freed goes back to the kernel, and the next one of its size comes back page
by page, each page zeroed at its first touch: 300,000 page faults in a step of ten layers of
SmolLM2-135M's shape on 2000 tokens. Elementwise products of that step took seven times as long as
on pages that were there, and the step a tenth longer; peak memory was larger too, not smaller.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4

_NEVER = -1
# What glibc's own, moving thresholds come to in a process that has freed large blocks; once set
# they no longer move.
_LARGEST_THRESHOLD = 32 << 20
_DEFAULT_MMAP_MAX = 65_536

_within = False  # the settings are the process's


@contextmanager
def heap_kept() -> Iterator[None]:
    """Within it, memory that is freed stays with the process; afterwards it is given back.

    Where the C library is not glibc nothing changes; within another one neither.
    """
    global _within
    libc = _glibc()
    if libc is None or _within:
        yield
        return
    _within = True
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)  # -1 as the size that it is: more than any heap
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        _within = False
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
