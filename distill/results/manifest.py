"""A table's manifest: the runs of each row, the data sets and the seeds. The table's files are made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.base.errors import UserError
from distill.base.files import write_whole
from distill.results.metrics import tokenizer_of

WITHOUT_MODEL = "none"  # in place of the pair's name, for a figure without a model


@dataclass(frozen=True)
class RowRuns:
    """A row of a table and its runs.

    Attributes:
        label: the row's label.
        group: `context` (the rows Teacher and SFT), or the row's in the experiment (`RowConfig.group`).
        role: the model that was measured, `student` or `teacher`.
        model: the pair whose results folder holds the runs.
        runs: the runs' names, one for each training seed.
        teacher: the key of the teacher that a student is compared with although it did not learn from it; "" if it did.
        other_teachers: runs of the row's first training with other teachers, by their training seed
            (`train.shared_seed`); of a teacher's row these teachers themselves.
    """

    label: str
    group: str
    role: str
    model: str
    runs: list[str]
    teacher: str = ""
    other_teachers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The rows, columns and seeds of a table.

    Together with the experiment, the paper's numbers and the runs it determines the table's files.

    Attributes:
        table: the table's name, `paper/table`.
        model: the pair's name.
        seeds: the generation seeds; empty for a table without generated responses.
        train_seeds: the training seeds of the students.
        columns: data set and metric of each column as result files name them, by title; None for an average.
        sets: the data sets' descriptions by name (`set_descriptions`).
        rows: all rows, measured or not.
        notes: header lines that the user added with `note=`.
        failed: of each row that failed when it was tried last, the reason.
        preset: the preset of the rows. The files of a table under `reference` stand beside those under `clean`.
    """

    table: str
    model: str
    seeds: list[int]
    train_seeds: list[int]
    columns: dict[str, list[str] | None]
    sets: dict[str, dict[str, Any]]
    rows: list[RowRuns]
    notes: list[str] = field(default_factory=list)
    preset: str = "clean"
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def paper(self) -> str:
        """The first part of the table's name."""
        return self.table.split("/")[0]

    @property
    def name(self) -> str:
        """The name of the table's files: the last part of its own, with `_reference` for that preset."""
        return _file_name(self.table, self.preset)

    @property
    def rouge_tokenizer(self) -> str | None:
        """The tokenizer of the table's ROUGE-L if it is not the papers'."""
        columns = [column for column in self.columns.values() if column is not None]
        return next((name for _, metric in columns if (name := tokenizer_of(metric)) is not None), None)

    def folder(self, results: str | Path) -> Path:
        """The folder of the table's files."""
        return table_folder(results, self.model, self.paper)

    @staticmethod
    def path_of(results: str | Path, model: str, table: str, preset: str = "clean") -> Path:
        """The file of a table's manifest."""
        return table_folder(results, model, table.split("/")[0]) / f"{_file_name(table, preset)}.manifest.json"

    def path(self, results: str | Path) -> Path:
        """The path of the manifest's file."""
        return self.path_of(results, self.model, self.table, self.preset)

    def write(self, results: str | Path) -> None:
        """Write the manifest's file, whole or not at all."""
        content = asdict(self)
        if not self.failed:  # as in earlier versions
            del content["failed"]
        write_whole(self.path(results), json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def read(path: Path) -> Manifest:
        """The manifest in a file.

        Raises:
            UserError: the file is not a manifest.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return Manifest(**{**raw, "rows": [RowRuns(**row) for row in raw["rows"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not a table's manifest ({error}); restore it from git, or remove it") from None


def _file_name(table: str, preset: str) -> str:
    return table.split("/")[1] + ("" if preset == "clean" else f"_{preset}")


def notes_of(path: Path, new: Sequence[str]) -> list[str]:
    """The notes in a manifest's file, if the file exists, followed by the new ones that it lacks."""
    earlier = Manifest.read(path).notes if path.is_file() else []
    return list(dict.fromkeys([*earlier, *new]))


def table_folder(results: str | Path, model: str, paper: str) -> Path:
    """The folder of a paper's tables for a pair."""
    return Path(results) / model / paper


def set_descriptions(sets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Descriptions of data sets (`distill.data.sets.Dataset`) for manifests and `run.json`, by name.

    A description has the set's title, number of rows, hash and note. If the set's number of rows differs from the
    papers', it has both numbers too.
    """
    return {
        name: {"title": d.title, "rows": len(d.examples), "hash": d.fingerprint, "note": d.note}
        | ({"counted": d.counted, "papers": d.papers} if d.counted is not None else {})
        for name, d in sets.items()
    }
