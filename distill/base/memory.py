"""The most memory that a process has held (on a GPU its allocations, else its resident set); keeping freed blocks."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES, LARGEST_KEPT = 2**26, 2**25  # what malloc may hold back, and the largest piece that it can
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Count anew from what is held now; False where the system cannot (it can on a GPU, and mostly on Linux)."""
    import torch

    gc.collect()
    give_back_freed_memory()  # else the peak would tell what the process did before
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Since the start or the last reset; None where the system does not tell."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        # Not getrusage's, which a process inherits from the one that started it
        found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def give_back_freed_memory() -> None:
    """Hand the system the blocks that glibc's malloc holds back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@cache
def keep_freed_memory() -> None:
    """Let glibc's malloc hold back the blocks that a pass frees, up to `KEPT_BYTES`, for the next pass.

    By default it hands them to the system, and the page faults of getting them anew cost several times what the passes
    themselves do. Other allocators have their own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
