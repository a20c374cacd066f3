"""Output to the terminal: plain lines, progress bars, tables."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from distill.base.processes import is_main_process

if TYPE_CHECKING:
    from rich.console import Console

    console: Console


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240, highlight=False, soft_wrap=True)


def __getattr__(name: str) -> Any:
    """The module attribute `console`, created at its first use: importing rich takes time, and few commands need it."""
    if name == "console":
        return _console()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def say(text: str) -> None:
    """Print one line above any progress bar, in the main process only."""
    from tqdm import tqdm

    if is_main_process():
        tqdm.write(text)
        sys.stdout.flush()


def bar(total: int, description: str, unit: str) -> Any:
    """A tqdm progress bar of the main process; when stderr is a file, it is updated only every 20 seconds.

    Args:
        total: number of steps.
        description: text before the bar.
        unit: name of one step, for the speed.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        dynamic_ncols=sys.stderr.isatty(),
        mininterval=0.2 if sys.stderr.isatty() else 20,
        disable=not is_main_process(),
        leave=False,
    )
