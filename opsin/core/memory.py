"""Let the allocator keep what training frees: the next step will want it again."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's `mallopt` parameters."""

LARGEST_KEPT = 32 << 20
"""glibc's own maximum of the mmap threshold; larger blocks go back to the system when they are freed."""


def keep_freed_memory() -> bool:
    """On Linux with glibc, keep freed blocks of up to 32 MiB in the process; returns whether that was possible.

    By default every tensor over 128 KiB is mapped and unmapped anew, and the kernel zeroes its pages each time: about a
    fifth of a training step on a CPU (docs/performance.md). The peak does not grow, it is only kept.
    """
    if not sys.platform.startswith("linux"):
        return False
    name = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None) if name else None
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
