"""Peak memory of this process (GPU allocations, else the resident set), and malloc settings that reuse memory."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
RETAINED_BYTES = 2**26  # freed memory that malloc may keep in place of returning it to the system
LARGEST_RETAINED_BLOCK = 2**25  # larger blocks are always returned; glibc allows no larger value
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Start a new measurement of peak memory from what is allocated now; False if the system does not allow it.

    A GPU always allows it, Linux mostly.
    """
    import torch

    _set_modules_apart()
    gc.collect()
    give_back_freed_memory()  # else the peak would include memory that was freed before
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


@cache
def _set_modules_apart() -> None:
    """Let the collector leave out what the imports made: it stays to the end, and a search takes a quarter second."""
    gc.collect()
    gc.freeze()


def peak_bytes() -> int | None:
    """Peak memory in bytes since the start or the last reset; None if the system does not report it."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        # Not getrusage's value, which a process inherits from its parent
        peak = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
    except OSError:
        return None
    return int(peak[1]) * 1024 if peak else None


def give_back_freed_memory() -> None:
    """Return the free blocks that glibc's malloc keeps to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@cache
def keep_freed_memory() -> None:
    """Let glibc's malloc keep the blocks that one pass frees, up to `RETAINED_BYTES`, for the next pass.

    By default it returns them to the system, and the page faults of allocating them again cost several times as much
    as the passes themselves. Other allocators are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_RETAINED_BLOCK)
        mallopt(M_TRIM_THRESHOLD, RETAINED_BYTES)
