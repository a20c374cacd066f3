"""The example record, and reading it from JSONL with errors that name file and line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UserError

ALLOWED = "a line is {'instruction': str, 'output': str or list of str, 'input': str (optional)}"


@dataclass(frozen=True)
class Example:
    """One instruction with its reference responses.

    `id` is a hash of the content and, for repeated rows, of the ordinal, so it is the same wherever the row stands.
    """

    id: str
    instruction: str
    input: str
    references: tuple[str, ...]
    topic: str = ""

    @property
    def response(self) -> str:
        """The response to train on."""
        return self.references[0]


def make_examples(rows: Iterable[tuple[str, str, Sequence[str], str]]) -> list[Example]:
    """Examples from (instruction, input, references, topic), each with its id."""
    seen: Counter[str] = Counter()
    examples = []
    for instruction, text, references, topic in rows:
        content = json.dumps([instruction, text, list(references)], ensure_ascii=False)
        ordinal = seen[content]
        seen[content] += 1
        digest = hashlib.sha256(f"{content}#{ordinal}".encode()).hexdigest()[:16]
        examples.append(Example(digest, instruction, text, tuple(references), topic))
    return examples


def fingerprint(examples: Sequence[Example]) -> str:
    """Hash of the examples' content and order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.id.encode())
    return digest.hexdigest()[:16]


def read_jsonl(path: Path, rows: slice = slice(None)) -> list[Example]:
    """The rows `rows` of a JSONL file as examples.

    Raises:
        UserError: the file is missing or empty, or lines (the first ten are named) are not JSON, lack a field, have
            one of a wrong type, or have an empty response.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such data file; set data.root=DIR (or DISTILL_DATA) to the folder that holds it")
    problems: list[str] = []
    parsed: list[tuple[str, str, Sequence[str], str]] = []
    with path.open("rb") as lines:
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    for number, line in numbered[rows]:
        try:
            parsed.append(_parse(line))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        rest = len(problems) - 10
        raise UserError(problems[:10] + ([f"{path}: {rest} more lines like these"] if rest > 0 else []))
    if not parsed:
        raise UserError(f"{path}: no rows (of {len(numbered)} in the file); {ALLOWED}")
    return make_examples(parsed)


def _parse(line: bytes) -> tuple[str, str, Sequence[str], str]:
    try:
        row: Any = json.loads(line.decode())
        json.dumps(row, ensure_ascii=False).encode()  # an escape may stand for half a character
    except UnicodeError as error:
        raise ValueError(f"not UTF-8 ({error}); {ALLOWED}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}); {ALLOWED}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object; {ALLOWED}")
    missing = [field for field in ("instruction", "output") if field not in row]
    if missing:
        raise ValueError(f"lacks {' and '.join(missing)} (has {', '.join(sorted(row)) or 'nothing'}); {ALLOWED}")
    output = row["output"]
    references = [output] if isinstance(output, str) else output
    text = row.get("input") or ""
    if not isinstance(row["instruction"], str) or not isinstance(text, str):
        raise ValueError(f"instruction and input must be strings; {ALLOWED}")
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        raise ValueError(f"output is a {type(output).__name__}; {ALLOWED}")
    if not references or not all(r.strip() for r in references):
        raise ValueError("empty response; give a text or leave the row out")
    return row["instruction"], text, references, str(row.get("topic") or row.get("category") or "")
