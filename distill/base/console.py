"""Output to the terminal: plain lines, progress bars, tables."""

from __future__ import annotations

import sys
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from distill.base.processes import is_main_process

if TYPE_CHECKING:
    from rich.console import Console

    console: Console


SILENCE = 8.0  # seconds after which `keep_alive` prints a line
_last_output = time.monotonic()


def _note_output() -> None:
    """Remember when something was last printed."""
    global _last_output
    _last_output = time.monotonic()


@cache
def keep_alive() -> None:
    """From now on print a line on stderr whenever nothing was printed for a while, so that a person sees that it runs.

    Some steps print nothing for long: the first import of torch, loading weights, a long forward pass.
    """

    def watch() -> None:
        started = _last_output
        while True:
            time.sleep(0.5)
            if time.monotonic() - _last_output >= SILENCE:
                print(f"  still running, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
                _note_output()

    if is_main_process():
        _note_output()
        threading.Thread(target=watch, daemon=True).start()


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
        _note_output()


_said: set[str] = set()


def say_once(text: str) -> None:
    """Print one line as `say` does, the first time in this process only."""
    if text not in _said:
        _said.add(text)
        say(text)


def bar(total: int, description: str, unit: str) -> Any:
    """A tqdm progress bar of the main process; when stderr is a file, it is updated only every few seconds.

    Args:
        total: number of steps.
        description: text before the bar.
        unit: name of one step, for the speed.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        def display(self, *args: Any, **kwargs: Any) -> bool | None:
            _note_output()
            shown: bool | None = super().display(*args, **kwargs)
            return shown

    return Bar(
        total=total,
        desc=description,
        unit=unit,
        dynamic_ncols=sys.stderr.isatty(),
        mininterval=0.2 if sys.stderr.isatty() else SILENCE - 1,
        disable=not is_main_process(),
        leave=False,
    )
