"""The example record, and readers of JSONL and raw task files whose errors name file and line."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from distill.base.console import say
from distill.base.errors import UserError
from distill.data.files import open_text, records, suffix

Row = tuple[str, str, Sequence[str], str]  # instruction, input, references, topic
TEST_TASKS = "splits/default/test_tasks.txt"  # in the repository of Super-NaturalInstructions
INSTANCES = 100  # of each task, the number that Super-NaturalInstructions' own evaluation uses
NOT_JSON = "not JSON"
NEEDED = ("instruction", "output")
FIELDS = ("instruction", "input", "output", "topic")
ALLOWED = "a record is {'instruction': str, 'output': str or list of str, 'input': str (optional)}"
OTHER_NAMES = {  # what other data sets call the fields, for a hint
    "instruction": ("prompt", "question", "query", "text"),
    "output": ("response", "completion", "answer", "answers", "target", "output_text"),
    "input": ("context", "input_text"),
}


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


def folder_hash(folder: Path, files: Iterable[Path] | None = None) -> str:
    """Hash of the content of files under a folder, with their names.

    Args:
        files: these; all by default.
    """
    content = hashlib.sha256()
    for file in sorted(folder.rglob("*") if files is None else files):
        if file.is_file():
            content.update(str(file.relative_to(folder)).encode())
            with file.open("rb") as handle:
                content.update(hashlib.file_digest(handle, "sha256").digest())
    return content.hexdigest()


def read(
    path: Path, rows: slice = slice(None), empty: bool = False, fields: Mapping[str, str] | None = None
) -> list[Example]:
    """The examples of a file of JSON (see `distill.data.files`), or of a folder of Super-NaturalInstructions' tasks.

    A record is one example or, as in Unnatural Instructions' raw file, an instruction with its `instances`.

    Args:
        path: the file or folder.
        rows: which records or task files are read.
        empty: whether rows with an empty response are left out and counted in a message (raw sets have some); if not,
            they are an error.
        fields: the file's own names of `FIELDS`.

    Raises:
        UserError: the file is missing or empty, or records are not JSON, lack a field, have a field of a wrong type, or
            have an empty response; the first ten kinds of problems, each with its first place.
    """
    numbered: list[tuple[str, bytes | dict[str, Any]]]
    if path.is_dir():
        numbered = [(str(file), _whole(file)) for file in _task_files(path)]
        parse = _parse_task
    elif path.is_file():
        numbered = list(records(path))
        parse = partial(_parse, fields=dict(fields or {}))
    else:
        raise UserError(f"{path}: no such data file")
    problems: dict[str, list[str]] = {}  # the places of each
    parsed: list[Row] = []
    left_out = 0
    for place, record in numbered[rows]:
        try:
            new_rows = parse(_object(record))
        except ValueError as error:
            problems.setdefault(str(error), []).append(place)
            continue
        for row in new_rows:
            if row[2] and all(reference.strip() for reference in row[2]):
                parsed.append(row)
            elif empty:
                left_out += 1
            else:
                problems.setdefault("empty response; give a text or leave the row out", []).append(place)
    if left_out:
        say(f"{path.name}: {left_out} rows without a response left out")
    if not parsed and sum(map(len, problems.values())) > 1 and all(NOT_JSON in problem for problem in problems):
        problem = next(iter(problems))
        raise UserError(f"no line of {path} is JSON; a data file is JSONL or a JSON list ({problem})")
    if problems:
        alike = [f"{places[0]}: {problem}{_more(places)}" for problem, places in problems.items()]
        rest = len(alike) - 10
        raise UserError(alike[:10] + ([f"{path}: {rest} more problems"] if rest > 0 else []))
    if not parsed:
        raise UserError(f"{path}: no rows (of {len(numbered)} lines or task files); {ALLOWED}")
    return make_examples(parsed)


def _more(places: Sequence[str]) -> str:
    """The numbers of further lines or entries with the same problem."""
    numbers = [re.split(r"[: ]", place)[-1] for place in places[1:]]
    rest = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f" (also {', '.join(numbers[:8])}{rest})" if numbers else ""


def is_raw(path: Path) -> bool:
    """Whether a set is raw, not filtered as in the papers: task files, or lines with `instances`."""
    if not path.is_file():
        return path.is_dir()
    try:
        _, first = next(records(path), ("", b"{}"))
        row = _object(first)
    except (ValueError, UserError):
        return False  # `read` names the line
    return "instances" in row and "output" not in row


def _task_files(folder: Path) -> list[Path]:
    """A folder's task files, sorted by name.

    If the folder is the whole repository (with `tasks/` and `splits/`), these are the tasks of its test split.
    """
    listed = folder / TEST_TASKS
    if not listed.is_file():
        return sorted([*folder.glob("*.json"), *folder.glob("*.json.gz")])
    files = [folder / "tasks" / f"{name}.json" for name in listed.read_text(encoding="utf-8").split()]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{listed} names {len(missing)} tasks that are not there, such as {missing[0]}")
    return sorted(files)


def _whole(file: Path) -> bytes:
    with open_text(file) as opened:
        return opened.read()


def _parse_task(row: dict[str, Any]) -> list[Row]:
    """The first instances of a task of Super-NaturalInstructions, each with the task's definition as instruction."""
    definition, instances = row.get("Definition"), row.get("Instances")
    definition = definition[0] if isinstance(definition, list) and definition else definition
    if not isinstance(definition, str) or not isinstance(instances, list):
        kinds = [f"{x} is {_kind(row[x]) if x in row else 'missing'}" for x in ("Definition", "Instances")]
        raise ValueError(
            "a task file has 'Definition' (a text, or a list of one) and 'Instances' (a list of objects);"
            f" {' and '.join(kinds)} here"
        )
    return [row for x in instances[:INSTANCES] for row in _parse({"instruction": definition, **_instance(x)})]


def _instance(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "output" not in value:
        raise ValueError("an instance is {'input': str, 'output': str or list of str}")
    return {"input": value.get("input"), "output": value["output"]}


def _object(record: bytes | dict[str, Any]) -> dict[str, Any]:
    """A record as an object, which can be written as UTF-8 again.

    Raises:
        ValueError: it is not UTF-8, not JSON or not an object.
    """
    try:
        row: Any = json.loads(record.decode().removeprefix("\ufeff").rstrip()) if isinstance(record, bytes) else record
        json.dumps(row, ensure_ascii=False).encode()  # raises for an escape that is half of a surrogate pair
    except RecursionError:
        raise ValueError(f"brackets within brackets too deep; {ALLOWED}") from None
    except UnicodeError as error:
        reason = "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else "perhaps latin-1"
        raise ValueError(f"not UTF-8 ({reason}); save the file as UTF-8; {ALLOWED}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{NOT_JSON} ({error.msg.removesuffix(' at')} at column {error.colno}); {ALLOWED}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{_kind(row)}, not an object; {ALLOWED}")
    return row


def _parse(row: dict[str, Any], fields: Mapping[str, str] | None = None) -> list[Row]:
    fields = fields or {}
    if isinstance(row.get("instances"), list) and "output" not in row:
        flat_rows = [{**row, **_instance(x)} for x in row["instances"]]
        flat_rows = [{k: v for k, v in x.items() if k != "instances"} for x in flat_rows]
        own = {name: text for name, text in fields.items() if name not in ("input", "output")}  # of an instance
        return [parsed for x in flat_rows for parsed in _parse(x, own)]
    values = {name: row.get(fields.get(name, name)) for name in FIELDS}
    missing = [fields.get(name, name) for name in NEEDED if fields.get(name, name) not in row]
    if missing:
        raise ValueError(f"lacks {' and '.join(missing)} (has {', '.join(sorted(row)) or 'nothing'}){_hint(row)}")
    if values["instruction"] is None:
        raise ValueError(f"{fields.get('instruction', 'instruction')} is null; {ALLOWED}")
    texts = [_text_or_empty(fields.get(name, name), values[name]) for name in ("instruction", "input", "topic")]
    output = values["output"]
    references = [output or ""] if output is None or isinstance(output, str) else output
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        within = [_kind(x) for x in references if not isinstance(x, str)] if isinstance(references, list) else []
        raise ValueError(
            f"{fields.get('output', 'output')} is {' with '.join([_kind(output), *within[:1]])}; {ALLOWED}"
        )
    topic = texts[2]
    if not topic and "topic" not in fields:
        topic = _text_or_empty("category", row.get("category"))
    return [(texts[0], texts[1], references, topic)]


def _text_or_empty(field: str, value: Any) -> str:
    """A field's text; "" where it is missing or null.

    Raises:
        ValueError: it is no string.
    """
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field} is {_kind(value)} ({json.dumps(value, ensure_ascii=False)[:40]}); {ALLOWED}")
    return value or ""


def _kind(value: Any) -> str:
    """The kind of a JSON value in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}[type(value)]


def _hint(row: Mapping[str, Any]) -> str:
    """How the names of a record's fields can be given, with those that other data sets use for ours."""
    likely = {name: next((x for x in OTHER_NAMES[name] if x in row), None) for name in OTHER_NAMES if name not in row}
    words = ",".join(f"{name}: {x}" for name, x in likely.items() if x is not None)
    return f"; its own names are given as 'data.fields={{{words or 'instruction: NAME,output: NAME'}}}' ({ALLOWED})"


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
    if suffix(path) == ".txt":
        try:
            with open_text(path) as file:
                whole = file.read().decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error})") from None
        return [text.strip() for text in whole.split("\n\n") if text.strip()][:limit]
    if suffix(path) not in (".jsonl", ".json"):
        raise UserError(
            f"{path}: a corpus is .jsonl, .json, .txt (also .gz) or .parquet, not {path.suffix or 'without a suffix'}"
        )
    return [_text(record, place) for place, record in islice(records(path), limit)]


def _text(record: bytes | dict[str, Any] | str, place: str) -> str:
    allowed = "a record of a corpus is {'text': str}"
    if isinstance(record, str):  # an entry of a JSON list
        return record
    try:
        row = _object(record)
    except ValueError as error:
        raise UserError(f"{place}: {str(error).partition(';')[0]}; {allowed}") from None
    text = row.get("text")
    if not isinstance(text, str):
        fault = f"text is {_kind(text)}" if "text" in row else f"it has {', '.join(sorted(row)) or 'nothing'}"
        raise UserError(f"{place}: {allowed}, and {fault}")
    return text
