"""Which artifacts the runs that are going on now need, so that `distill.store prune` leaves them alone."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distill.base.files import write_whole
from distill.base.processes import is_main_process


def guard(store: Path) -> FileLock:
    """Held while a run says what it needs, and while artifacts are chosen and removed."""
    folder = store / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "leases.lock")


@contextmanager
def lease(store: Path, names: Iterable[str]) -> Iterator[None]:
    """Within it the artifacts of these names are not pruned, finished or not.

    A file names them, and a lock beside it is held; a process that dies lets go of the lock, and its file counts no
    more.
    """
    if not is_main_process():
        yield
        return
    folder = store / "leases"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    lock = FileLock(path.with_suffix(".lock"))
    with guard(store):
        lock.acquire()
        write_whole(path, json.dumps(sorted(names)))
    try:
        yield
    finally:
        with guard(store):
            path.unlink(missing_ok=True)
            lock.release()
            path.with_suffix(".lock").unlink(missing_ok=True)


def leased(store: Path) -> set[str]:
    """Names of the artifacts that living runs need; files of dead ones are removed. Call it under the guard."""
    names: set[str] = set()
    for path in sorted((store / "leases").glob("*.json")):
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            names.update(json.loads(path.read_text()))
            continue
        lock.release()
        for dead in (path, path.with_suffix(".lock")):
            dead.unlink(missing_ok=True)
    return names
