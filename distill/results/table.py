"""A table as data: lines and scores of its rows, read from the runs that the manifest names, and its cells."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill.base.files import lock_beside, write_whole
from distill.results import metrics
from distill.results.experiment import Experiment
from distill.results.manifest import Manifest, RowRuns
from distill.results.runs import LONG_COLUMNS, RunFolder, long_lines
from distill.results.statistics import Cell, Column, cell, prompt_scores, resampled_mean

MISSING = "missing"  # the text of a cell that was not measured
FAILED_CELL = "failed"  # the text of such a cell whose row failed when it was tried last


def seeds_name(seeds: Sequence[int]) -> str:
    """Generation seeds as the column `seeds` of a run's scores has them."""
    return " ".join(map(str, seeds))


@dataclass(frozen=True)
class RowData:
    """A row of a table with the data of its runs.

    Attributes:
        row: the manifest's entry.
        lines: the runs' facts over the table's data sets and seeds, as lines of a long file.
        scores: the scores by prompt of each run that has any over the table's data sets and seeds.
        descriptions: the content of `run.json` of each run that was measured.
        other_teachers: the row with each of the further teachers, by the teacher's seed.
        unmeasured: the text of a cell without a value.
    """

    row: RowRuns
    lines: pd.DataFrame
    scores: list[pd.DataFrame]
    descriptions: list[dict[str, Any]]
    other_teachers: dict[str, RowData] = field(default_factory=dict)
    unmeasured: str = MISSING
    _cells: dict[Column, Cell | None] = field(default_factory=dict)
    _resampled: dict[Column, Resampled | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The row's label."""
        return self.row.label

    def cell(self, column: Column) -> Cell | None:
        """The row's cell in a column; None if the row has no value there. A page asks for it several times."""
        if column not in self._cells:
            measured = self._measured.issuperset(column.parts)
            self._cells[column] = cell(self.lines, column) if measured else None
        return self._cells[column]

    @cached_property
    def _measured(self) -> frozenset[tuple[str, str]]:
        return frozenset(zip(self.lines["dataset"], self.lines["metric"], strict=True))

    @cached_property
    def copies(self) -> dict[str, set[str]]:
        """The copies of each stage behind the row, by the stage's name.

        The name has the hash of the stage's inputs and settings. Copies of one name may still differ, since machines
        round differently.
        """
        copies: dict[str, set[str]] = {}
        for run in self.descriptions:
            for name, stage in run["stages"].items():
                copy = str(stage.get("weights") or (stage.get("seconds"), stage.get("commit")))
                copies.setdefault(name, set()).add(copy)
        return copies

    def has_copies_of(self, other: RowData) -> bool:
        """Whether both were made over the same copies of the stages that they share, so that they can be compared."""
        shared = self.copies.keys() & other.copies.keys()
        return all(len(self.copies[name] | other.copies[name]) == 1 for name in shared)

    def prompt_scores(self, dataset: str, metric: str) -> pd.DataFrame:
        """The scores in a metric, a line a training and a column a prompt, by example id."""
        column, topic = metrics.per_prompt_column(metric)
        return prompt_scores(self.scores, dataset, column, topic)

    def resampled(self, column: Column) -> Resampled | None:
        """The scores by prompt in a column and their resampled means; None for a column without them, or with gaps.

        Each row draws its trainings by a seed from its label, so that a table's numbers do not depend on other rows.
        """
        if column not in self._resampled:
            has_prompts = all(metrics.find(dataset, metric).per_prompt for dataset, metric in column.parts)
            frames = [self.prompt_scores(dataset, metric) for dataset, metric in column.parts] if has_prompts else []
            usable = frames and all(f.shape[1] > 1 and not f.isna().any(axis=None) for f in frames)
            if usable and len({len(frame) for frame in frames}) == 1:
                means = resampled_mean([f.to_numpy() for f in frames], zlib.crc32(self.label.encode()))
                self._resampled[column] = Resampled(frames, means)
            else:
                self._resampled[column] = None
        return self._resampled[column]


@dataclass(frozen=True)
class Resampled:
    """A row's scores by prompt in a column.

    Attributes:
        frames: for each set of the column the scores, a line a training and a column a prompt.
        means: the row's means over resampled trainings and prompts `[RESAMPLES]`.
    """

    frames: list[pd.DataFrame]
    means: np.ndarray

    def has_prompts_of(self, other: Resampled) -> bool:
        """Whether both are over the same prompts."""
        return all(a.columns.equals(b.columns) for a, b in zip(self.frames, other.frames, strict=True))


def columns_of(experiment: Experiment, manifest: Manifest) -> list[Column]:
    """The columns of a table that are measured, with data sets and metrics as result files name them."""
    columns = []
    for title, config in experiment.columns.items():
        if config.needs is not None:
            continue
        if config.average is not None:
            parts = tuple(_part(manifest, other) for other in config.average)
            columns.append(Column(title, parts))
            continue
        dataset, metric = _part(manifest, title)
        columns.append(Column(title, ((dataset, metric),), metrics.find(dataset, metric).any_size))
    return columns


def _part(manifest: Manifest, title: str) -> tuple[str, str]:
    part = manifest.columns[title]
    assert part is not None
    dataset, metric = part
    return dataset, metric


def rows_of(manifest: Manifest, results: str | Path) -> list[RowData]:
    """The rows of a table in the manifest's order, with their measurements over its data sets and seeds."""
    rows = _rows_of(manifest, results, manifest.rows)
    for row in rows:
        seeds = list(row.row.other_teachers)
        others = [replace(row.row, runs=[row.row.other_teachers[seed]], other_teachers={}) for seed in seeds]
        row.other_teachers.update(zip(seeds, _rows_of(manifest, results, others), strict=True))
    return rows


def _rows_of(manifest: Manifest, results: str | Path, of_manifest: Sequence[RowRuns]) -> list[RowData]:
    titles = {name: data["title"] for name, data in manifest.sets.items()}
    hashes = {name: data["hash"] for name, data in manifest.sets.items()}
    seeds = {"", *map(str, manifest.seeds)}
    rows = []
    for row in of_manifest:
        folders = [RunFolder(results, row.model, run) for run in row.runs]
        frames = [long_lines(folder, manifest.name, row.label, titles) for folder in folders]
        lines = pd.concat(frames, ignore_index=True)
        lines["metric"] = [metrics.without_teacher(name, row.teacher) for name in lines["metric"]]
        lines = lines.dropna(subset="metric")  # comparisons with another teacher
        expected_hashes = lines["dataset"].map(hashes)  # NaN for costs and for sets that the table does not use
        selected = (expected_hashes.isna() | (expected_hashes == lines["data"])) & lines["seed"].isin(seeds)
        scores = [_selected_scores(folder.scores(), hashes, manifest.seeds) for folder in folders]
        descriptions = [description for folder in folders if (description := folder.description())]
        unmeasured = FAILED_CELL if row.label in manifest.failed else MISSING
        scores = [s for s in scores if len(s)]
        rows.append(RowData(row, lines[selected][LONG_COLUMNS], scores, descriptions, unmeasured=unmeasured))
    return rows


def _selected_scores(scores: pd.DataFrame, hashes: Mapping[str, str], seeds: Sequence[int]) -> pd.DataFrame:
    """The scores over these data sets and exactly these generation seeds."""
    selected = (scores["seeds"] == seeds_name(seeds)) & (scores["data"] == scores["dataset"].map(hashes))
    return scores[selected]


def cells_table(rows: Sequence[RowData], columns: Sequence[Column], absent: Sequence[str] = ()) -> pd.DataFrame:
    """The table with cells as text, one line a row. The column `group` has the groups of the rows.

    Args:
        rows: the rows.
        columns: the columns.
        absent: titles of the columns whose data set is not part of the pair's data. Their cells are empty. In other
            columns, a cell without a measurement is `missing`, or `failed` where the row was tried and failed.
    """
    data = []
    for row in rows:
        cells = {column.title: row.cell(column) for column in columns}
        empty = {title: "" if title in absent else row.unmeasured for title in cells}
        texts = {title: empty[title] if value is None else str(value) for title, value in cells.items()}
        data.append({"row": row.label, "group": row.row.group, **texts})
    return pd.DataFrame(data, columns=["row", "group", *(column.title for column in columns)])


def transposed(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `cells_table` with its columns as rows, without `group`."""
    by_column = table.drop(columns="group").set_index("row").T
    return by_column.rename_axis("row").rename_axis(None, axis=1).reset_index()


def absent_columns(experiment: Experiment, manifest: Manifest) -> list[str]:
    """The titles of columns whose data set is not part of the pair's data, and of the averages over them."""
    not_data_sets = (metrics.TRAINING, metrics.VALIDATION, metrics.BENCHMARKS)
    absent = {
        title
        for title, part in manifest.columns.items()
        if part is not None and part[0] not in (*manifest.sets, *not_data_sets)
    }
    averages = {t for t, c in experiment.columns.items() if c.average and absent.intersection(c.average)}
    return [title for title in experiment.columns if title in absent | averages]


def curves(rows: Sequence[RowData], results: str | Path, column: str = "eval_rouge_l") -> pd.DataFrame:
    """A validation metric by epoch, of the training of each row's model: columns row, train_seed, epoch, value."""
    frames = []
    for row, train_seed, curve in _own_curves(rows, results):
        validations = curve[curve[column].notna()]
        frames.append(
            pd.DataFrame(
                {
                    "row": row.label,
                    "train_seed": train_seed,
                    "epoch": validations["epoch"].astype(float).round(4),
                    "value": validations[column].astype(float),
                }
            )
        )
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=["row", "train_seed", "epoch", "value"])
    )


def logged(rows: Sequence[RowData], results: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """What the trainings of the rows' models logged by step: row, train_seed, step, and the columns that they have."""
    names = ["row", "train_seed", "step", *columns]
    frames = [
        curve.assign(row=row.label, train_seed=train_seed).reindex(columns=names).dropna(subset=list(columns))
        for row, train_seed, curve in _own_curves(rows, results)
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=names)


def _own_curves(rows: Sequence[RowData], results: str | Path) -> Iterator[tuple[RowData, Any, pd.DataFrame]]:
    """Each training of the rows' models, with its training seed and curve."""
    for row in rows:
        for run in row.row.runs:
            folder = RunFolder(results, row.row.model, run)
            if description := folder.description():
                curve = folder.curve()
                yield row, description["train_seed"], curve[curve["stage"] == description["stage"]]


def epochs_table(curves_by_row: pd.DataFrame) -> pd.DataFrame:
    """Curves (see `curves`) as a table, a line an epoch and a column a row.

    A cell is the mean over trainings, with the sample standard deviation of several; `missing` where there is no value.
    """

    def cell_text(values: pd.Series) -> str:
        return f"{values.mean():.2f}" + (f" ({values.std(ddof=1):.2f})" if len(values) > 1 else "")

    cells = curves_by_row.groupby(["epoch", "row"], sort=False)["value"].agg(cell_text).unstack("row")
    cells = cells[list(dict.fromkeys(curves_by_row["row"]))].sort_index().fillna(MISSING)
    return cells.rename(index="{:g}".format).rename_axis(columns=None).reset_index()


def write_long(manifest: Manifest, results: str | Path, rows: Sequence[RowData]) -> Path:
    """Write `<table>_long.csv`, one line a value, row by row, and return its path."""
    path = manifest.folder(results) / f"{manifest.name}_long.csv"
    lines = pd.concat([row.lines for row in rows], ignore_index=True) if rows else pd.DataFrame(columns=LONG_COLUMNS)
    with lock_beside(path):
        write_whole(path, lines.to_csv(index=False, lineterminator="\n"))
    return path
