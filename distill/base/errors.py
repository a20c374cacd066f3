"""The one error a user can mend, and how a command ends on it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence

from distill.base.processes import abandon, leave_processes, world_size


class UserError(Exception):
    """Something the user can mend: bad configuration, bad data, an unreachable hub.

    Carries one message a problem. Each says what was found, what is allowed and the way out. A command that ends on
    it prints them without a traceback and exits with code 2.

    Attributes:
        problems: the messages.
        shared: whether all processes of a distributed run raise it together, so that they can go on together.
    """

    def __init__(self, problems: str | Sequence[str], shared: bool = False):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.shared = shared
        super().__init__("\n".join(self.problems))


# What went wrong in jobs of a sweep that went on; the command's exit code tells.
FAILED: list[UserError] = []


def nearest(word: str, options: Iterable[str]) -> str:
    """`; did you mean a or b?` for the names in `options` most like `word`, or nothing."""
    similar = difflib.get_close_matches(word, list(dict.fromkeys(options)), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def report(error: UserError) -> None:
    """Print the problems of `error` to stderr, one line each."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)


def report_and_go_on(error: UserError) -> None:
    """Print the problems of one job or row, after which others are tried.

    A process of a distributed run that failed alone ends instead: the others wait for it in a collective, and the
    launcher ends them.
    """
    report(error)
    if world_size() > 1 and not error.shared:
        abandon(2)


def command(main: Callable[[list[str]], int]) -> int:
    """Run `main` on the command line's words; a UserError becomes its messages and exit code 2."""
    try:
        code = main(sys.argv[1:])
        if code == 0:  # after a failure of one process alone the others would be waited for
            leave_processes()
        return code
    except UserError as error:
        report(error)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is finished", file=sys.stderr)
        return 130
