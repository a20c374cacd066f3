"""The error for problems that the user can fix, and how a command exits with it."""

from __future__ import annotations

import difflib
import errno
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from distill.base.console import keep_alive
from distill.base.processes import abandon, leave_processes, settle_environment, world_size


class UserError(Exception):
    """A problem that the user can fix: bad configuration, bad data, an unreachable hub.

    It carries one message per problem. Each message says what was found, what is allowed and what to do. A command
    that ends with this error prints the messages without a traceback and exits with code 2.

    Attributes:
        problems: the messages, one per problem.
        shared: whether all processes of a distributed run raise it together. If so, they can all continue with the
            next job.
    """

    def __init__(self, problems: str | Sequence[str], shared: bool = False):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.shared = shared
        super().__init__("\n".join(self.problems))


# Errors of single jobs after which a sweep continued; if there are any, the command exits with code 2.
FAILED: list[UserError] = []


FULL, DENIED = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)
# torch and safetensors report a full disk by errors of their own
FULL_DISK = ("No space left on device", "PytorchStreamWriter failed writing", "Disk quota exceeded")


@contextmanager
def of_machine() -> Iterator[None]:
    """Raise a full disk and a folder without permission as a UserError, whichever library met them."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        if number in FULL or any(text in str(error) for text in FULL_DISK):
            raise UserError(
                f"the disk is full{place}; make room (python -m distill.store prune) and run the same command again,"
                " which goes on from what is finished"
            ) from error
        if number in DENIED:
            raise UserError(
                f"no permission to write or read{place}; change it, or choose other folders (paths.*)"
            ) from error
        raise


def failed_job(error: Exception) -> UserError:
    """Report why one job of several failed, so that the others still run: a UserError by its lines, another error by
    its traceback, since it is a fault of the program. It is added to `FAILED`."""
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        error = UserError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    FAILED.append(error)
    report_and_go_on(error)
    return error


def without_folders(problems: Sequence[str]) -> str:
    """Messages in one line without folders of this machine, for files that are shared."""
    return re.sub(r"(?<![\w.:/~])/(?:[^\s/:;,]+/)+", "", " ".join(" | ".join(problems).split()))


def nearest(word: str, options: Iterable[str]) -> str:
    """`; did you mean a or b?` with the names in `options` that resemble `word`, or an empty string."""
    by_lower = {option.lower(): option for option in options}  # whoever types fkld means FKLD
    similar = [by_lower[x] for x in difflib.get_close_matches(word.lower(), list(by_lower), n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def report(error: UserError) -> None:
    """Print the problems of `error` to stderr, one line each."""
    for problem in error.problems:
        if "tqdm" in sys.modules:  # a progress bar may be open, and its line would go on with the message
            sys.modules["tqdm"].tqdm.write(f"error: {problem}", file=sys.stderr)
        else:
            print(f"error: {problem}", file=sys.stderr)


def report_and_go_on(error: UserError) -> None:
    """Print the problems of one job or row, so that the caller can continue with the next one.

    If only this process of a distributed run failed, it exits instead: the other processes wait for it in a
    collective, and its exit makes the launcher end them.
    """
    report(error)
    if world_size() > 1 and not error.shared:
        abandon(2)


def command(main: Callable[[list[str]], int]) -> int:
    """The exit code of `main`, called with the command-line arguments.

    A UserError is printed as its messages and gives 2; an interrupt from the keyboard gives 130.
    """
    keep_alive()
    try:
        try:
            for line in settle_environment():
                print(line, file=sys.stderr)
        except ValueError as error:
            raise UserError(str(error)) from None
        with of_machine():
            code = main(sys.argv[1:])
        if code == 0:  # leaving waits for the other processes, so a process that failed alone must not do it
            leave_processes()
        return code
    except UserError as error:
        report(error)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue from what is finished", file=sys.stderr)
        return 130
