"""Files that several processes read and write: atomic writes, locks, and paths relative to the project."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill.base.errors import UserError

LFS_POINTER = b"version https://git-lfs"  # how a file of Git LFS begins that was not fetched
OF_LFS = "a pointer of Git LFS and not the file itself; run first: git lfs pull"


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new, never a part of it.

    The temporary file has a unique name, so that two processes that write the same file do not share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a crash could leave an empty file under the name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def follow_umask(folder: Path) -> None:
    """Give everything in a folder the modes of new files here; safetensors writes files for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, empty, a pointer of Git LFS, or not JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror})") from None
    if not content.strip():
        raise UserError(f"{path}: it is empty, as after a crash or on a full disk; copy it again, or remove its folder")
    if content.startswith(LFS_POINTER):
        raise UserError(f"{path}: it is {OF_LFS}")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); copy it again, or remove its folder") from None


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: it holds a {type(content).__name__}, where settings by name are needed; copy it again"
        )
    return content


def lock_beside(path: Path) -> FileLock:
    """A lock between processes for a file or folder: a hidden file beside it, which git ignores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def relative_to(value: str, root: Path) -> str:
    """The form of a path for files that are shared, without folders of this machine.

    A relative path is returned as it is, an absolute path below `root` relative to `root`, and of any other path only
    the last part.
    """
    path = Path(value).expanduser()
    if not path.is_absolute():
        return value
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
