"""Files that several processes read and write: whole or not at all, under locks, named relative to the project."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from filelock import FileLock


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    The temporary file's name is unique, so that two processes that write the same file do not meet in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def lock_beside(path: Path) -> FileLock:
    """A lock for a file or folder (a hidden file beside it that is not in git), held against other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def relative_to(value: str, root: Path) -> str:
    """A path as shared files may name it: relative to `root` where it lies below it, else its last part alone."""
    place = Path(value).expanduser()
    if not place.is_absolute():
        return value
    return str(place.relative_to(root)) if place.is_relative_to(root) else place.name
