"""The records of files as people have them: JSONL or a JSON list, gzipped or not, with or without a byte order mark."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from distill.base.errors import UserError
from distill.base.files import LFS_POINTER, OF_LFS

GZIP = b"\x1f\x8b"
KINDS: dict[str, tuple[bytes, ...]] = {  # by signature; the first that fits counts
    "UTF-32; save it as UTF-8 (iconv -f UTF-32 -t UTF-8 FILE > NEW)": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8 FILE > NEW)": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    OF_LFS: (LFS_POINTER,),
    "parquet; write it as JSONL (pandas: read_parquet, to_json(orient='records', lines=True))": (b"PAR1",),
    "a zip archive; unpack it": (b"PK\x03\x04",),
    "packed with zstd; unpack it (unzstd)": (b"\x28\xb5\x2f\xfd",),
    "packed with bzip2; unpack it (bunzip2)": (b"BZh",),
    "packed with xz; unpack it (unxz)": (b"\xfd7zXZ",),
}


def suffix(path: Path) -> str:
    """A file's suffix without that of a compression: `.jsonl` of `a.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def open_text(path: Path) -> IO[bytes]:
    """The bytes of a text file, unpacked if it is gzipped and without a byte order mark.

    Raises:
        UserError: the file is of another encoding or kind, a Git LFS pointer, or a damaged archive.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == GZIP
    opened: IO[bytes] = io.BufferedReader(_Unpacked(path)) if gzipped else path.open("rb")
    start = opened.peek(200)[:200]  # type: ignore[attr-defined]
    if (what := _no_text(start)) is not None:
        opened.close()
        raise UserError(f"{path}: {what}")
    if start.startswith(codecs.BOM_UTF8):
        opened.read(len(codecs.BOM_UTF8))
    return opened


def _no_text(start: bytes) -> str | None:
    """What a file is that is no UTF-8 text, and what to do, by its first bytes; None for a text."""
    for kind, signatures in KINDS.items():
        if start.startswith(signatures):
            return f"it is {kind}"
    if b"\0" in start:
        return "it holds zero bytes, as UTF-16 without a mark and binary files do; save it as UTF-8 text"
    return None


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

    A line of JSONL is given as it stands, since a reader may want few of them; an entry of a JSON list, which may be
    the one list of an object (`{"data": [...]}`), as its value.

    Raises:
        UserError: the file cannot be read, or begins with `[` and is no JSON list of objects.
    """
    with open_text(path) as lines:
        if _first_character(lines) == b"[":
            yield from _entries(path, _parsed(path, lines.read()))
            return
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        first = list(islice(numbered, 2))
        if (whole := _one_object(first, lines)) is not None:
            yield from _entries(path, whole)
            return
        for number, line in chain(first, numbered):
            yield f"{path}:{number}", line


def _one_object(first: list[tuple[int, bytes]], lines: IO[bytes]) -> list[Any] | None:
    """The records of a file that is one JSON object, of one line or many; None for JSONL, which is read no further."""
    if not first or not first[0][1].lstrip().startswith(b"{"):
        return None
    try:
        whole = json.loads(first[0][1])
        if len(first) > 1 or not isinstance(whole, dict):
            return None
    except (ValueError, RecursionError):
        if len(first) < 2 or not lines.seekable():
            return None
        place = lines.tell()
        try:
            whole = json.loads(b"".join(line for _, line in first) + lines.read())
        except (ValueError, RecursionError):
            lines.seek(place)
            return None
    lists = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1 and not {"instances", "Instances"} & set(whole):
        return lists[0]
    return [whole] if len(first) > 1 else None


def _first_character(lines: IO[bytes]) -> bytes:
    """The first character that is no space, which stays unread."""
    while not (start := lines.peek(1024).lstrip()[:1]):  # type: ignore[attr-defined]
        if not lines.read(len(lines.peek(1024))):  # type: ignore[attr-defined]
            break
    return bytes(start)


def _parsed(path: Path, content: bytes) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: it is not UTF-8 or not JSON.
    """
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise UserError(f"{path}: brackets within brackets too deep") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise UserError(f"{path}:{error.lineno}: not JSON ({reason} at column {error.colno})") from None


def _entries(path: Path, entries: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, entry in enumerate(entries, 1):
        yield f"{path}, entry {number}", entry
