"""A table as data: its rows' lines and scores from the runs that its manifest names, shaped into cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from distill.base.files import lock_beside, write_whole
from distill.results import metrics
from distill.results.experiment import Experiment
from distill.results.manifest import Manifest, RowRuns
from distill.results.runs import LONG, RunFolder, lines_of
from distill.results.statistics import Column, cell, prompt_means

MISSING = "missing"  # the cell of a value that was not measured


def seeds_name(seeds: Sequence[int]) -> str:
    """The generation seeds that a prompt's mean is over, as a run's scores name them."""
    return " ".join(map(str, seeds))


@dataclass(frozen=True)
class RowData:
    """A row of a table with what its runs tell.

    Attributes:
        row: as the manifest has it.
        lines: of a long file, those that count in this table.
        scores: by prompt, of each run that has some.
        described: `run.json` of each run that was measured.
    """

    row: RowRuns
    lines: pd.DataFrame
    scores: list[pd.DataFrame]
    described: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """In the table."""
        return self.row.label

    def prompt_means(self, dataset: str, metric: str) -> pd.Series:
        """Each prompt's mean score behind a metric, by id."""
        column, topic = metrics.per_prompt_column(metric)
        return prompt_means(self.scores, dataset, column, topic)


def columns_of(experiment: Experiment, manifest: Manifest) -> list[Column]:
    """The columns of a table, with their metrics as result files name them."""
    columns = []
    for title, config in experiment.columns.items():
        if config.average is not None:
            parts = tuple(_part(manifest, other) for other in config.average)
            columns.append(Column(title, parts))
            continue
        dataset, metric = _part(manifest, title)
        columns.append(Column(title, ((dataset, metric),), metrics.find(dataset, metric).any_size))
    return columns


def _part(manifest: Manifest, title: str) -> tuple[str, str]:
    named = manifest.columns[title]
    assert named is not None
    dataset, metric = named
    return dataset, metric


def rows_of(manifest: Manifest, results: str | Path) -> list[RowData]:
    """The rows of a table in its order, with what was measured over its sets and seeds."""
    titles = {name: told["title"] for name, told in manifest.sets.items()}
    hashes = {name: told["hash"] for name, told in manifest.sets.items()}
    seeds = {"", *map(str, manifest.seeds)}
    rows = []
    for row in manifest.rows:
        folders = [RunFolder(results, row.model, run) for run in row.runs]
        frames = [lines_of(folder, manifest.name, row.label, titles) for folder in folders]
        lines = pd.concat(frames, ignore_index=True)
        of_set = lines["dataset"].map(hashes)
        counts = (of_set.isna() | (of_set == lines["data"])) & lines["seed"].isin(seeds)
        scores = [_of_seeds(folder.scores(), hashes, manifest.seeds) for folder in folders]
        described = [told for folder in folders if (told := folder.description())]
        rows.append(RowData(row, lines[counts][LONG], [s for s in scores if len(s)], described))
    return rows


def _of_seeds(scores: pd.DataFrame, hashes: Mapping[str, str], seeds: Sequence[int]) -> pd.DataFrame:
    chosen = (scores["seeds"] == seeds_name(seeds)) & (scores["data"] == scores["dataset"].map(hashes))
    return scores[chosen]


def shaped(rows: Sequence[RowData], columns: Sequence[Column], absent: Sequence[str] = ()) -> pd.DataFrame:
    """Cells as text, one line a row; `group` sets the context rows apart.

    Args:
        absent: titles of columns that the pair's data does not have; their cells are empty, others `missing`.
    """
    data = []
    for row in rows:
        cells = {column.title: cell(row.lines, column) for column in columns}
        empty = {title: "" if title in absent else MISSING for title in cells}
        texts = {title: empty[title] if value is None else str(value) for title, value in cells.items()}
        data.append({"row": row.label, "group": row.row.group, **texts})
    return pd.DataFrame(data, columns=["row", "group", *(column.title for column in columns)])


def transposed(table: pd.DataFrame) -> pd.DataFrame:
    """A shaped table with its columns as rows."""
    turned = table.drop(columns="group").set_index("row").T
    return turned.rename_axis("row").rename_axis(None, axis=1).reset_index()


def absent_columns(experiment: Experiment, manifest: Manifest) -> list[str]:
    """Columns whose data set the pair's data does not have, or that average such a column."""
    special = (metrics.TRAINING, metrics.VALIDATION, metrics.BENCHMARKS)
    absent = {
        title
        for title, named in manifest.columns.items()
        if named is not None and named[0] not in (*manifest.sets, *special)
    }
    averages = {t for t, c in experiment.columns.items() if c.average and absent.intersection(c.average)}
    return [title for title in experiment.columns if title in absent | averages]


def curves(rows: Sequence[RowData], results: str | Path, column: str = "eval_rouge_l") -> pd.DataFrame:
    """A validation figure by epoch, of each row's own training: columns row, train_seed, epoch, value."""
    frames = []
    for row in rows:
        for run in row.row.runs:
            folder = RunFolder(results, row.row.model, run)
            described = folder.description()
            if not described:
                continue
            curve = folder.curve()
            own = curve[(curve["stage"] == described["stage"]) & curve[column].notna()]
            frames.append(
                pd.DataFrame(
                    {
                        "row": row.label,
                        "train_seed": described["train_seed"],
                        "epoch": own["epoch"].astype(float).round(4),
                        "value": own[column].astype(float),
                    }
                )
            )
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=["row", "train_seed", "epoch", "value"])
    )


def epochs_table(rows: Sequence[RowData], results: str | Path) -> pd.DataFrame:
    """Validation ROUGE-L by epoch, a line a row: the mean over trainings, and their standard deviation if several."""
    long = curves(rows, results)
    epochs = sorted(long["epoch"].unique())
    data = []
    for row in rows:
        own = long[long["row"] == row.label]
        cells = {}
        for epoch in epochs:
            values = own.loc[own["epoch"] == epoch, "value"]
            spread = f" ({values.std(ddof=1):.2f})" if len(values) > 1 else ""
            cells[f"epoch {epoch:g}"] = f"{values.mean():.2f}{spread}" if len(values) else MISSING
        data.append({"row": row.label, "group": row.row.group, **(cells or {"epoch": MISSING})})
    return pd.DataFrame(data)


def write_long(manifest: Manifest, results: str | Path, rows: Sequence[RowData]) -> Path:
    """Write `<table>_long.csv`: one line a value, row by row."""
    path = manifest.folder(results) / f"{manifest.name}_long.csv"
    lines = pd.concat([row.lines for row in rows], ignore_index=True) if rows else pd.DataFrame(columns=LONG)
    with lock_beside(path):
        write_whole(path, lines.to_csv(index=False, lineterminator="\n"))
    return path
