"""The records of files as people have them: JSONL or a JSON list, gzipped or not, with or without a byte order mark."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from distill.base.errors import UserError

GZIP = b"\x1f\x8b"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LFS_POINTER = b"version https://git-lfs"


def suffix(path: Path) -> str:
    """A file's suffix without that of a compression: `.jsonl` of `a.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def open_text(path: Path) -> IO[bytes]:
    """The bytes of a text file, unpacked if it is gzipped and without a byte order mark.

    Raises:
        UserError: the file is UTF-16, a Git LFS pointer, or a damaged archive.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == GZIP
    opened: IO[bytes] = io.BufferedReader(_Unpacked(path)) if gzipped else path.open("rb")
    start = opened.peek(200)[:200]  # type: ignore[attr-defined]
    if start.startswith(UTF16):
        opened.close()
        raise UserError(f"{path}: it is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8 {path.name} > NEW)")
    if start.startswith(LFS_POINTER):
        opened.close()
        raise UserError(f"{path}: it is a pointer of Git LFS and not the file itself; run first: git lfs pull")
    if start.startswith(codecs.BOM_UTF8):
        opened.read(len(codecs.BOM_UTF8))
    return opened


class _Unpacked(gzip.GzipFile):
    """A gzip file whose damage is reported as a problem of the file."""

    def __init__(self, path: Path):
        super().__init__(path, "rb")
        self._path = path

    def readinto(self, buffer: Any) -> int:
        try:
            content = super().read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self._path}: damaged gzip archive ({error}); fetch it again") from None
        buffer[: len(content)] = content
        return len(content)


def records(path: Path) -> Iterator[tuple[str, bytes | dict[str, Any]]]:
    """The records of a file, each with its place for messages.

    A line of JSONL is given as it stands, since a reader may want few of them; an entry of a JSON list as its value.

    Raises:
        UserError: the file cannot be read, or begins with `[` and is no JSON list of objects.
    """
    with open_text(path) as lines:
        if _first_character(lines) == b"[":
            yield from _entries(path, lines.read())
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}:{number}", line


def _first_character(lines: IO[bytes]) -> bytes:
    """The first character that is no space, which stays unread."""
    while not (start := lines.peek(1024).lstrip()[:1]):  # type: ignore[attr-defined]
        if not lines.read(len(lines.peek(1024))):  # type: ignore[attr-defined]
            break
    return bytes(start)


def _entries(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(content.decode())
    except RecursionError:
        raise UserError(f"{path}: brackets within brackets too deep") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise UserError(f"{path}:{error.lineno}: not JSON ({reason} at column {error.colno})") from None
    for number, entry in enumerate(entries, 1):
        yield f"{path}, entry {number}", entry
