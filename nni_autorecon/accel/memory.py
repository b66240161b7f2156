"""The memory that tensors on the CPU come from and go back to."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, as in glibc's malloc.h
LARGEST_INT, LARGEST_MMAP_THRESHOLD = 2**31 - 1, 2**25


def keep_freed_memory() -> bool:
    """Let this process keep what tensors leave, for the next ones; whether the C library can do that.

    A training step frees what the next one asks for again. glibc would return the larger part to the system in
    between, page by page, and every page costs when it is first touched again. What is larger than 32 MB still goes
    back at once, so that no large holes are kept.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(TRIM_THRESHOLD, LARGEST_INT) and mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD))
