"""Leases: which artifacts the running commands need, so that `distill.store prune` does not remove them."""

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
    """The lock of a store's leases.

    A run holds it while it writes or removes its lease, and `prune` while it selects and removes artifacts.
    """
    folder = store / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "leases.lock")


@contextmanager
def lease(store: Path, names: Iterable[str]) -> Iterator[None]:
    """A context in which `prune` removes none of the artifacts of these names, finished or unfinished.

    A file lists the names, and the process holds a lock on it. When a process dies, its lock is released, and `leased`
    ignores and removes its file.
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
    """The names of the artifacts that running commands need. The caller must hold `guard(store)`.

    Files that processes left when they died are removed.
    """
    names: set[str] = set()
    for path in sorted((store / "leases").glob("*.json")):
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            names.update(json.loads(path.read_text()))
            continue
        lock.release()
        for stale in (path, path.with_suffix(".lock")):
            stale.unlink(missing_ok=True)
    return names
