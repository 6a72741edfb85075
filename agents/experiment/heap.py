"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 8 * 2**20  # bytes


def return_large_blocks() -> None:
    """Let glibc return freed blocks of 8 MiB and more to the system at once; elsewhere this does nothing.

    Batches of different lengths free blocks of different sizes. glibc raises its limit for such blocks to 32 MiB by itself,
    and keeps what it could not give back.
    Only scripts call this, because it holds for the whole process.
    """
    with suppress(OSError, AttributeError):  # no C library to load, or one without mallopt
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
