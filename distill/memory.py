"""The most memory that this process has held: on a GPU its allocations, else its resident set."""

from __future__ import annotations

from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Count anew from what is held now, where the system can (a GPU, or Linux)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        CLEAR.write_text("5")


def peak_bytes() -> int | None:
    """Since the start or the last reset; None where the system does not tell."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if not STATUS.is_file():
        return None
    # Not getrusage's, which a process inherits from the one that started it
    return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024
