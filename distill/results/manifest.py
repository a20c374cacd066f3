"""A table's manifest: which runs its rows are, over which sets and seeds. All of its files are made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.base.errors import UserError
from distill.base.files import write_whole

WITHOUT_MODEL = "none"  # stands for the pair of a figure that needs none


@dataclass(frozen=True)
class RowRuns:
    """A row of a table and the runs that it stands for.

    Attributes:
        label: in the table.
        group: `context` (Teacher and SFT, which every table has) or `paper`.
        role: whose values it has, `student` or `teacher`.
        model: the pair whose results folder holds the runs.
        runs: one for each training seed.
    """

    label: str
    group: str
    role: str
    model: str
    runs: list[str]


@dataclass(frozen=True)
class Manifest:
    """What a table's files are made from, beside the experiment, the paper's numbers and the runs.

    Attributes:
        table: `paper/table`.
        model: the pair.
        seeds: generation seeds; none where nothing was written.
        train_seeds: of the students.
        columns: data set and metric of each column as result files name them; none for an average.
        sets: of each data set its title, hash, rows, note, and counts where they are not the papers'.
        rows: all rows, measured or not.
        notes: what only a person knows.
    """

    table: str
    model: str
    seeds: list[int]
    train_seeds: list[int]
    columns: dict[str, list[str] | None]
    sets: dict[str, dict[str, Any]]
    rows: list[RowRuns]
    notes: list[str] = field(default_factory=list)

    @property
    def paper(self) -> str:
        """The first part of the table's name."""
        return self.table.split("/")[0]

    @property
    def name(self) -> str:
        """The last part of the table's name."""
        return self.table.split("/")[1]

    def folder(self, results: str | Path) -> Path:
        """Where the table's files lie."""
        return table_folder(results, self.model, self.paper)

    def path(self, results: str | Path) -> Path:
        """Its own file."""
        return self.folder(results) / f"{self.name}.manifest.json"

    def write(self, results: str | Path) -> None:
        """Write it whole."""
        write_whole(self.path(results), json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def read(path: Path) -> Manifest:
        """The manifest in a file.

        Raises:
            UserError: it is none.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return Manifest(**{**raw, "rows": [RowRuns(**row) for row in raw["rows"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: no table's manifest ({error}); restore it from git, or remove it") from None


def notes_of(path: Path, new: Sequence[str]) -> list[str]:
    """The notes that stand in a manifest's file, if it is there, and new ones."""
    earlier = Manifest.read(path).notes if path.is_file() else []
    return list(dict.fromkeys([*earlier, *new]))


def table_folder(results: str | Path, model: str, paper: str) -> Path:
    """Where a paper's tables for a pair lie."""
    return Path(results) / model / paper


def described_sets(sets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a manifest and a run tell of data sets (`distill.data.sets.Dataset`)."""
    return {
        name: {"title": d.title, "rows": len(d.examples), "hash": d.fingerprint, "note": d.note}
        | ({"counted": d.counted, "papers": d.papers} if d.counted is not None else {})
        for name, d in sets.items()
    }
