"""A cell of a table, made again from what its runs recorded, and compared."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from distill.base.errors import UserError, nearest
from distill.base.provenance import hardware, versions
from distill.config import load
from distill.config.plugins import import_plugins
from distill.config.schema import Config
from distill.pipeline.checks import ROLES
from distill.pipeline.measure import measure, measurements_for
from distill.pipeline.rows import Row
from distill.results import metrics
from distill.results.manifest import Manifest, RowRuns
from distill.results.runs import RunFolder
from distill.results.separation import between_teachers, between_trainings, by_teacher
from distill.results.statistics import Column
from distill.results.table import RowData, rows_of

INSIDE = 0.975  # the quantile of Student's t within which two cells count as apart by chance
ALIKE = ("processor", "kind", "threads", "accelerators")  # of two machines that round alike


@dataclass(frozen=True)
class Cell:
    """A measured cell of a table.

    Attributes:
        manifest: the table's.
        results: the results folder.
        row: the row's runs.
        column: the column.
    """

    manifest: Manifest
    results: Path
    row: RowRuns
    column: Column

    @staticmethod
    def of(file: str, label: str | None, title: str | None) -> Cell:
        """The named cell of a table or of a figure with bars, or one that is drawn from its measured cells.

        Args:
            file: any file of the table.
            label: the row's label; None draws.
            title: the column's title; None draws.

        Raises:
            UserError: there is no such table, row, column or cell, or the column has costs.
        """
        source = _manifest_beside(Path(file))
        manifest, results = Manifest.read(source), source.resolve().parents[2]
        parts = {name: (part[0], part[1]) for name, part in manifest.columns.items() if part is not None}
        if title in parts and parts[title][0] == metrics.TRAINING:
            raise UserError(f"column={title}: costs are of a machine, and differ from run to run; name another column")
        if title in manifest.columns and title not in parts:
            raise UserError(f"column={title}: an average of the other columns; name one of {', '.join(parts)}")
        columns = [Column(name, (part,)) for name, part in parts.items() if part[0] != metrics.TRAINING]
        rows = rows_of(manifest, results)
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
        return Cell(manifest, results, row.row, column)

    def misprint(self) -> str:
        """What the table's CSV shows in place of the number that the runs have; empty if it shows that.

        Other files of the table are not read, nor are a figure's, whose CSV has no cells.
        """
        path = self.manifest.folder(self.results) / f"{self.manifest.name}.csv"
        if not path.is_file():
            return ""
        only = replace(self.manifest, rows=[self.row])
        measured = str(rows_of(only, self.results)[0].cell(self.column))
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame = frame.set_index(frame.columns[0])
        for table in (frame, frame.T):  # some papers print the columns as rows
            if self.row.label in table.index and self.column.title in table.columns:
                in_file = str(table.at[self.row.label, self.column.title])
                return "" if in_file == measured else f"{path} shows {in_file}, and its runs have {measured}"
        return ""

    def values(self, run: str, results: Path, teacher: str) -> pd.Series:
        """A run's values in the cell's column over the table's sets and seeds, by generation seed.

        Args:
            run: the run's name.
            results: the results folder that has it.
            teacher: the key of the teacher that the row is compared with (`RowRuns.teacher`).
        """
        only = replace(self.row, runs=[run], teacher=teacher, other_teachers={})
        (row,) = rows_of(replace(self.manifest, rows=[only]), results)
        dataset, metric = self.column.parts[0]
        lines = row.lines[(row.lines["dataset"] == dataset) & (row.lines["metric"] == metric)]
        return lines.set_index("seed")["value"].astype(float)

    def reach(self) -> float | None:
        """How far two such cells lie apart by chance in 95 of 100 cases.

        It is of trainings, by their number, and of teachers as far as a kept table of the pair has several: of the
        row's own if it has several, else of all rows of its role. The first table that has both counts, else the first
        that has one, this table before others. None if no table has either.
        """
        from scipy import stats

        path = self.manifest.path(self.results)
        others = sorted(self.results.glob(f"{self.manifest.model}/*/*.manifest.json"))
        spreads: list[tuple[Spread, Spread]] = []  # of trainings, of teachers
        for manifest in (Manifest.read(p) for p in [path, *(other for other in others if other != path)]):
            if manifest.preset == self.manifest.preset and list(self.column.parts[0]) in manifest.columns.values():
                rows = [row for row in rows_of(manifest, self.results) if row.row.role == self.row.role]
                own = [row for row in rows if row.label == self.row.label]
                of_trainings = _of_trainings(own, self.column) or _of_trainings(rows, self.column)
                spreads.append((of_trainings, _of_teachers(own, self.column) or _of_teachers(rows, self.column)))
        known = sorted((pair for pair in spreads if pair != (None, None)), key=lambda pair: pair.count(None))
        if not known:
            return None
        of_trainings, of_teachers = known[0]
        variance = of_trainings[0] if of_trainings else 0.0
        # a row with another teacher is another training too
        between = max(0.0, of_teachers[0] - variance) if of_teachers else 0.0
        degrees = min(spread[1] for spread in (of_trainings, of_teachers) if spread)
        deviation = math.sqrt(2 * (variance / len(self.row.runs) + between))
        return float(stats.t.ppf(INSIDE, degrees)) * deviation


def _manifest_beside(path: Path) -> Path:
    """The manifest of a table's file.

    Raises:
        UserError: there is none.
    """
    kinds = (".manifest.json", "_long.csv", path.suffix)
    stems = [path.name.removesuffix(kind) for kind in kinds if kind and path.name.endswith(kind)]
    for stem in stems:
        if (source := path.parent / f"{stem}.manifest.json").is_file():
            return source
    raise UserError(
        f"{path}: not the file of a measured table; name one of its files, such as results/micro/akl/main.csv"
    )


Spread = tuple[float, int] | None  # a variance and its degrees of freedom; None if nothing tells it


def _of_trainings(rows: Sequence[RowData], column: Column) -> Spread:
    """The variance between trainings of a row, the mean over the rows with several."""
    counts = [row.lines["train_seed"].nunique() for row in rows if row.cell(column) is not None]
    deviation = between_trainings(rows, column)
    return None if deviation is None else (deviation**2, sum(count - 1 for count in counts))


def _of_teachers(rows: Sequence[RowData], column: Column) -> Spread:
    """The variance between teachers of a row, the mean over the rows with several."""
    values = by_teacher(rows, column)
    deviation = between_teachers(values)
    return None if deviation is None else (deviation**2, int((values.count(axis=1) - 1).sum()))


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


def verified(cell: Cell, store: str | Path, folders: Mapping[str, str] | None = None) -> Verdict:
    """Make a cell's artifacts again in a store and compare the values.

    Args:
        cell: the cell.
        store: the store.
        folders: by their keys in the config, folders of which the cell's runs recorded only the names.

    Raises:
        UserError: the settings or data of a run are not what they were, or a stage fails.
    """
    lines = []
    for run in cell.row.runs:
        kept = cell.values(run, cell.results, cell.row.teacher)
        if kept.empty:
            continue
        row = _again(RunFolder(cell.results, cell.row.model, run), cell, store, folders)
        measure(row, measurements_for([cell.column.parts[0]]))
        teacher = row.plan.other_teacher if cell.row.teacher else ""
        again = cell.values(run, Path(row.config.paths.results), teacher)
        lines.append(pd.DataFrame({"run": run, "kept": kept, "again": again}).reset_index())
    values = pd.concat(lines, ignore_index=True)
    difference = float(values["again"].mean() - values["kept"].mean())
    if (values["kept"] == values["again"]).all():
        text, holds = "equal to the byte", True
    elif lacking := int(values[["kept", "again"]].isna().any(axis=1).sum()):
        text, holds = f"different: {lacking} of {len(values)} values are kept or made again alone", False
    elif all(_rounds_alike(RunFolder(cell.results, cell.row.model, run).description()) for run in cell.row.runs):
        here = "on the same kind of processor, with the same threads and versions"
        text, holds = f"different by {difference:+.4g} {here}, where it should be equal to the byte", False
    elif (reach := cell.reach()) is None:
        text, holds = f"different by {difference:+.4g}; no kept table tells how far trainings differ here", False
    else:
        holds = abs(difference) <= reach
        of = "that 95 of 100 such rows stay within, by trainings and teachers as far as they are known"
        text = f"different by {difference:+.2f}, {'' if holds else 'not '}within the {reach:.2f} {of}"
    return Verdict(values.astype(str), text, holds)


def _rounds_alike(description: Mapping[str, Any]) -> bool:
    """Whether a run was made where the same settings give the same bits as here."""
    stages = description["stages"].values()
    here, machines = hardware(), [description["hardware"], *(stage["hardware"] for stage in stages)]
    alike = all(machine.get(name) == here[name] for machine in machines for name in ALIKE)
    return alike and description["versions"] == versions()


def _again(folder: RunFolder, cell: Cell, store: str | Path, folders: Mapping[str, str] | None = None) -> Row:
    """The row of a run, from the config that the run recorded, with results of its own beside the store.

    Raises:
        UserError: the config is not one of this version, or the row would be another run, or over other data.
    """
    description = folder.description()
    recorded: dict[str, Any] = copy.deepcopy(_with_folders(description["config"], folders or {}))
    if problems := [
        f"{folder.folder}: {key} was {value}, which is no folder here; say where it is, as {key}=FOLDER"
        for key, value in _folders_of(recorded).items()
        if _is_elsewhere(key, value)
    ]:
        raise UserError(problems)
    import_plugins(recorded.get("plugins"))
    of_data, dataset = recorded["data"]["eval"], cell.column.dataset
    if recorded["debug"]["smoke"] and dataset in cell.manifest.sets:  # a run has the sets of its first table only
        of_data.setdefault(dataset, {"title": cell.manifest.sets[dataset]["title"]})
    sets = [name for name in (dataset, *of_data) if name in of_data]
    preset = load([f"preset={recorded['preset']['name']}"]).preset.model_dump(mode="json")
    settings = {
        **recorded,
        "seed": cell.manifest.seeds or [10],
        "preset": {**preset, **recorded["preset"]},  # an older run lacks the quirks that were found since
        "paths": {**recorded["paths"], "store": str(store), "results": f"{store}/results"},
        "eval": {**recorded["eval"], "sets": sets[:1]},
    }
    try:
        row = Row(cell.row.label, Config.model_validate(settings), description["role"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{folder.folder}: its settings are not settings of this version ({key}: {first['msg']}); commit"
            f" {description['commit']} reads them"
        ) from None
    kept_sets = {name: data["hash"] for name, data in cell.manifest.sets.items()}
    changed = [name for name, data in row.plan.sets.items() if kept_sets.get(name) not in (None, data.fingerprint)]
    if row.run != folder.run or changed:
        why = _changes(row, description) if row.run != folder.run else _of_data(changed, description)
        raise UserError(f"{folder.folder}: made again it would be another measurement: {why}")
    return row


def _folders_of(recorded: Mapping[str, Any]) -> dict[str, str]:
    """The values of a recorded config that may name a folder or a file, by their keys, without those that are null."""
    evaluation, pretrain = recorded["eval"], recorded["data"].get("pretrain")
    values = {f"model.{role}.{key}": recorded["model"][role].get(key) for role in ROLES for key in ("id", "path")}
    values |= {
        "data.root": recorded["data"].get("root"),
        "data.pretrain.file": pretrain.get("file") if isinstance(pretrain, dict) else None,  # a word if there is none
        "loss.span.pipeline": (recorded["loss"].get("span") or {}).get("pipeline"),
        "eval.bertscore.encoder": evaluation["bertscore"]["encoder"],
        "eval.benchmarks.tasks": evaluation.get("benchmarks", {}).get("tasks"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _is_elsewhere(key: str, value: str) -> bool:
    """Whether a recorded value names a folder that is not here, such as one outside the project, of which
    `record.shareable` writes only the name."""
    named = key == "data.root" or re.fullmatch(r"[^/]+-[0-9a-f]{6}", value) is not None
    return named and not Path(value).expanduser().is_dir()


def _with_folders(recorded: dict[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    """A recorded config with other folders and files.

    Raises:
        UserError: the config has none by such a key, or there is none of such a name.
    """
    known = _folders_of(recorded)
    config = copy.deepcopy(recorded)
    for key, value in folders.items():
        if key not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{key}: the run has no folder or file by this key{nearest(key, known)} ({there})")
        path = Path(value).expanduser()
        if not value or not (path.is_file() if key.endswith(".file") else path.is_dir()):
            raise UserError(f"{key}={value}: there is no such {'file' if key.endswith('.file') else 'folder'}")
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = str(path.resolve())
    return config


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
        return _of_data(changed, description)
    return f"its settings or code are no longer those of commit {description['commit']}"


def _of_data(changed: Sequence[str], description: Mapping[str, Any]) -> str:
    return f"the data of {', '.join(changed)} changed; restore what commit {description['commit']} read"
