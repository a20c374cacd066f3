"""What a person watching sees: plain lines, progress bars, tables."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from tqdm import tqdm

console = Console(width=None if sys.stdout.isatty() else 240, highlight=False, soft_wrap=True)


def is_main_process() -> bool:
    """Whether this process speaks and writes for all of a distributed run."""
    return rank() == 0


def rank() -> int:
    """This process's number in a distributed run; 0 otherwise."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Processes of a distributed run (torchrun, accelerate launch); 1 otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_processes() -> None:
    """Leave the other processes of a distributed run, as the last thing that a process does when all went well.

    Threads of the group that outlive the interpreter now and then abort a process that has done all its work (PyTorch
    issue 190489). Leaving waits for the others, so a process that failed alone must not.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def say(text: str) -> None:
    """Print one line, above any progress bar."""
    if is_main_process():
        tqdm.write(text)
        sys.stdout.flush()


def bar(total: int, description: str, unit: str) -> Any:
    """A progress bar with speed and time left; in a log file it prints a line now and then."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        dynamic_ncols=sys.stderr.isatty(),
        mininterval=0.2 if sys.stderr.isatty() else 20,
        disable=not is_main_process(),
        leave=False,
    )
