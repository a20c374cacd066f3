"""The example record, and readers of JSONL and raw task files whose errors name file and line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.base.console import say
from distill.base.errors import UserError

Row = tuple[str, str, Sequence[str], str]  # instruction, input, references, topic
TEST_TASKS = "splits/default/test_tasks.txt"  # in the repository of Super-NaturalInstructions
INSTANCES = 100  # of each task, the number that Super-NaturalInstructions' own evaluation uses
ALLOWED = "a line is {'instruction': str, 'output': str or list of str, 'input': str (optional)}"


@dataclass(frozen=True)
class Example:
    """One instruction with its reference responses.

    Attributes:
        id: hash of the content and, for repeated rows, of the number of the repetition; it does not depend on where
            the row is in its file.
        instruction: the instruction.
        input: the input text; may be empty.
        references: the reference responses.
        topic: the topic; may be empty.
    """

    id: str
    instruction: str
    input: str
    references: tuple[str, ...]
    topic: str = ""

    @property
    def response(self) -> str:
        """The response to train on, the first reference."""
        return self.references[0]


def make_examples(rows: Iterable[Row]) -> list[Example]:
    """Examples of rows (instruction, input, references, topic), each with its id."""
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


def folder_hash(folder: Path) -> str:
    """Hash of the content of all files under a folder, with their names."""
    content = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content.update(str(file.relative_to(folder)).encode())
            with file.open("rb") as handle:
                content.update(hashlib.file_digest(handle, "sha256").digest())
    return content.hexdigest()


def read(path: Path, rows: slice = slice(None), empty: bool = False) -> list[Example]:
    """The examples of a JSONL file, or of a folder of Super-NaturalInstructions' task files.

    A line of JSONL is one example or, as in Unnatural Instructions' raw file, an instruction with its `instances`.

    Args:
        path: the file or folder.
        rows: which lines or task files are read.
        empty: whether rows with an empty response are left out and counted in a message (raw sets have some); if not,
            they are an error.

    Raises:
        UserError: the file is missing or empty, or lines (the first ten are named) are not JSON, lack a field, have a
            field of a wrong type, or have an empty response.
    """
    if path.is_dir():
        numbered = [(str(file), file.read_bytes()) for file in _task_files(path)]
        parse = _parse_task
    elif path.is_file():
        with path.open("rb") as lines:
            numbered = [(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
        parse = _parse
    else:
        raise UserError(f"{path}: no such data file; set data.root=DIR (or DISTILL_DATA) to the folder that holds it")
    problems: list[str] = []
    parsed: list[Row] = []
    left_out = 0
    for place, text in numbered[rows]:
        try:
            new_rows = parse(_object(text))
        except ValueError as error:
            problems.append(f"{place}: {error}")
            continue
        for row in new_rows:
            if row[2] and all(reference.strip() for reference in row[2]):
                parsed.append(row)
            elif empty:
                left_out += 1
            else:
                problems.append(f"{place}: empty response; give a text or leave the row out")
    if left_out:
        say(f"{path.name}: {left_out} rows without a response left out")
    if problems:
        rest = len(problems) - 10
        raise UserError(problems[:10] + ([f"{path}: {rest} more like these"] if rest > 0 else []))
    if not parsed:
        raise UserError(f"{path}: no rows (of {len(numbered)} lines or task files); {ALLOWED}")
    return make_examples(parsed)


def is_raw(path: Path) -> bool:
    """Whether a set is raw, not filtered as in the papers: task files, or lines with `instances`."""
    if not path.is_file():
        return path.is_dir()
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"{}")
    try:
        row = _object(first)
    except ValueError:
        return False  # `read` names the line
    return "instances" in row and "output" not in row


def _task_files(folder: Path) -> list[Path]:
    """A folder's task files, sorted by name.

    If the folder is the whole repository (with `tasks/` and `splits/`), these are the tasks of its test split.
    """
    listed = folder / TEST_TASKS
    if not listed.is_file():
        return sorted(folder.glob("*.json"))
    files = [folder / "tasks" / f"{name}.json" for name in listed.read_text(encoding="utf-8").split()]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{listed} names {len(missing)} tasks that are not there, such as {missing[0]}")
    return sorted(files)


def _parse_task(row: dict[str, Any]) -> list[Row]:
    """The first instances of a task of Super-NaturalInstructions, each with the task's definition as instruction."""
    definition, instances = row.get("Definition"), row.get("Instances")
    definition = definition[0] if isinstance(definition, list) and definition else definition
    if not isinstance(definition, str) or not isinstance(instances, list):
        raise ValueError(f"a task file has 'Definition' and 'Instances', not {', '.join(sorted(row)) or 'nothing'}")
    return [row for x in instances[:INSTANCES] for row in _parse({"instruction": definition, **_instance(x)})]


def _instance(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "output" not in value:
        raise ValueError("an instance is {'input': str, 'output': str or list of str}")
    return {"input": value.get("input"), "output": value["output"]}


def _object(line: bytes) -> dict[str, Any]:
    try:
        row: Any = json.loads(line.decode())
        json.dumps(row, ensure_ascii=False).encode()  # raises for an escape that is half of a surrogate pair
    except UnicodeError as error:
        raise ValueError(f"not UTF-8 ({error}); {ALLOWED}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}); {ALLOWED}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object; {ALLOWED}")
    return row


def _parse(row: dict[str, Any]) -> list[Row]:
    if isinstance(row.get("instances"), list) and "output" not in row:
        flat_rows = [{**row, **_instance(x)} for x in row["instances"]]
        return [parsed for x in flat_rows for parsed in _parse({k: v for k, v in x.items() if k != "instances"})]
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
    return [(row["instruction"], text, references, str(row.get("topic") or row.get("category") or ""))]


def read_texts(path: Path, limit: int | None = None) -> list[str]:
    """The plain texts of a corpus file.

    In JSONL a text is the field `text` of a line, in parquet a value of the column `text`; in `.txt` blank lines
    separate the texts.

    Args:
        path: the file.
        limit: maximum number of texts, the first ones; None is all.

    Raises:
        UserError: the file is of another kind, or a line of JSONL is not an object with a text; names file and line.
    """
    if path.suffix == ".parquet":
        import pandas as pd

        try:
            return [str(text) for text in pd.read_parquet(path, columns=["text"])["text"][:limit]]
        except ImportError:
            raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from None
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: no parquet file with a column text ({error})") from None
    if path.suffix == ".txt":
        parts = path.read_text(encoding="utf-8").split("\n\n")
        return [text.strip() for text in parts if text.strip()][:limit]
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: a corpus is .jsonl, .parquet or .txt, not {path.suffix or 'without a suffix'}")
    texts: list[str] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(texts) == limit:
                break
            if line.strip():
                texts.append(_text(line, f"{path}:{number}"))
    return texts


def _text(line: bytes, place: str) -> str:
    try:
        text = _object(line).get("text")
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    if not isinstance(text, str):
        raise UserError(f"{place}: a line of a corpus is {{'text': str}}, and text is {type(text).__name__}")
    return text
