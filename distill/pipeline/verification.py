"""A cell of a table, made again from what its runs recorded, and compared."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from distill.base.errors import UserError, nearest
from distill.config.plugins import import_plugins
from distill.config.schema import Config
from distill.pipeline.measure import measure, measurements_for
from distill.pipeline.rows import Row
from distill.results import experiment as experiments
from distill.results.manifest import Manifest, RowRuns
from distill.results.runs import RunFolder
from distill.results.separation import between_teachers, by_teacher, separations
from distill.results.statistics import Column
from distill.results.table import columns_of, rows_of

REACH = 2.0  # standard deviations that two means may lie apart, of the difference of two teachers or trainings


@dataclass(frozen=True)
class Cell:
    """A measured cell of a table.

    Attributes:
        manifest: the table's.
        results: the results folder.
        row: the row's runs.
        column: the column.
        spread: the standard deviation in this column between teachers, or else between trainings, or else over the
            cell's generation seeds; None without any of them.
        between: what it is between.
    """

    manifest: Manifest
    results: Path
    row: RowRuns
    column: Column
    spread: float | None
    between: str

    @staticmethod
    def of(file: str, label: str | None, title: str | None) -> Cell:
        """The named cell of a table, or one that is drawn from its measured cells.

        Args:
            file: any file of the table.
            label: the row's label; None draws.
            title: the column's title; None draws.

        Raises:
            UserError: there is no such table, row, column or cell.
        """
        path = Path(file)
        stem = path.name.removesuffix(".manifest.json").split(".")[0].removesuffix("_long")
        source = path.with_name(f"{stem}.manifest.json")
        if not source.is_file():
            raise UserError(f"{file}: not the file of a measured table: there is no {source}")
        manifest, results = Manifest.read(source), path.resolve().parents[2]
        experiment = experiments.load(manifest.table).for_pair(manifest.model)
        if experiment.kind != "table":
            raise UserError(f"{file}: this is a figure; give the file of a table")
        rows = rows_of(manifest, results)
        columns = [column for column in columns_of(experiment, manifest) if not column.is_average]
        for name, wanted, known in (
            ("row", label, [row.label for row in rows]), ("column", title, [column.title for column in columns])
        ):  # fmt: skip
            if wanted is not None and wanted not in known:
                raise UserError(f"{name}={wanted}: not a {name} of this table{nearest(wanted, known)} (there are"
                                f" {', '.join(known)})")  # fmt: skip
        cells = [
            (row, column)
            for row in rows
            for column in columns
            if label in (None, row.label) and title in (None, column.title) and row.cell(column) is not None
        ]
        if not cells:
            raise UserError(f"{file}: no such cell was measured; name another row or column, or none")
        row, column = random.choice(cells)
        value = row.cell(column)
        assert value is not None
        spreads = {
            "teachers": between_teachers(by_teacher(rows, column)),
            "trainings": next((s.between_trainings for s in separations(rows, [column])), None),
            "generation seeds": value.std,
        }
        between, spread = next(((name, std) for name, std in spreads.items() if std), ("trainings", None))
        return Cell(manifest, results, row.row, column, spread, between)


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        values: a line a value: kept and made again.
        text: the verdict in a sentence.
        holds: whether the cell is equal, or differs by no more than teachers or trainings do.
    """

    values: pd.DataFrame
    text: str
    holds: bool


def verified(cell: Cell, store: str | Path) -> Verdict:
    """Make a cell's artifacts again in a store and compare the values.

    Raises:
        UserError: the settings or data of a run are not what they were, or a stage fails.
    """
    lines = []
    for run in cell.row.runs:
        folder = RunFolder(cell.results, cell.row.model, run)
        kept = _values(folder, cell)
        if kept.empty:
            continue
        row = _again(folder, cell, store)
        measure(row, measurements_for([(cell.column.dataset, cell.column.metric)]))
        lines.append(pd.DataFrame({"run": run, "kept": kept, "again": _values(row.folder, cell)}).reset_index())
    values = pd.concat(lines, ignore_index=True)
    equal = (values["kept"] == values["again"]).all()
    difference = float(values["again"].mean() - values["kept"].mean())
    if equal:
        text, holds = "equal to the byte", True
    elif cell.spread is None:
        text, holds = f"different by {difference:+.4g}; this column's spread over trainings is not known", False
    else:
        of_difference = math.sqrt(2) * cell.spread
        holds = abs(difference) <= REACH * of_difference
        within = f"within {REACH:g} standard deviations of the difference of two {cell.between} ({of_difference:.2f})"
        text = f"different by {difference:+.2f}, {'' if holds else 'not '}{within}"
    return Verdict(values.astype(str), text, holds)


def _values(folder: RunFolder, cell: Cell) -> pd.Series:
    """A run's values in the cell's column over the table's seeds, by generation seed."""
    facts = folder.facts()
    seeds = {"", *map(str, cell.manifest.seeds)}
    chosen = facts[
        (facts["dataset"] == cell.column.dataset) & (facts["metric"] == cell.column.metric) & facts["seed"].isin(seeds)
    ]
    return chosen.set_index("seed")["value"].astype(float)


def _again(folder: RunFolder, cell: Cell, store: str | Path) -> Row:
    """The row of a run, from the config that the run recorded, with results of its own beside the store.

    Raises:
        UserError: the config is not one of this version, or the row would be another run.
    """
    description = folder.description()
    recorded: dict[str, Any] = description["config"]
    import_plugins(recorded.get("plugins"))
    sets = [cell.column.dataset] if cell.column.dataset in recorded["data"]["eval"] else []
    settings = {
        **recorded,
        "seed": cell.manifest.seeds or [10],
        "paths": {**recorded["paths"], "store": str(store), "results": f"{store}/results"},
        "eval": {**recorded["eval"], **({"sets": sets} if sets else {})},
    }
    try:
        row = Row(cell.row.label, Config.model_validate(settings), description["role"])
    except ValidationError as error:
        raise UserError(
            f"{folder.folder}: its settings are not settings of this version ({error}); commit"
            f" {description['commit']} reads them"
        ) from None
    if row.run != folder.run:
        raise UserError(
            f"{folder.folder}: made again it would be another run ({row.run}): {_changes(row, description)}"
        )
    return row


def _changes(row: Row, description: Mapping[str, Any]) -> str:
    """What of a run's data changed since it was measured."""
    train, valid = row.plan.data
    now = {"train": train, "valid": valid, **row.plan.sets}
    changed = [
        name
        for name, data in now.items()
        if name in description["data"] and description["data"][name]["hash"] != data.fingerprint
    ]
    if changed:
        return f"the data of {', '.join(changed)} changed; restore what commit {description['commit']} read"
    return f"its settings or code are no longer those of commit {description['commit']}"
