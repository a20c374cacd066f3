"""What a person watching sees: plain lines, progress bars, tables."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from tqdm import tqdm

from distill.base.processes import is_main_process

console = Console(width=None if sys.stdout.isatty() else 240, highlight=False, soft_wrap=True)


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
