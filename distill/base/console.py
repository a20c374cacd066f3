"""What a person watching sees: plain lines, progress bars, tables."""

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
    """`console` is made when it is first asked for: most commands that only check something print no table."""
    if name == "console":
        return _console()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def say(text: str) -> None:
    """Print one line, above any progress bar."""
    from tqdm import tqdm

    if is_main_process():
        tqdm.write(text)
        sys.stdout.flush()


def bar(total: int, description: str, unit: str) -> Any:
    """A progress bar with speed and time left; in a log file it prints a line now and then."""
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
