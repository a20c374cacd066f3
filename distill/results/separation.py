"""How well the columns of a table tell its rows apart, and the teacher from a student without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill.results.experiment import CONTEXT
from distill.results.metrics import is_rouge
from distill.results.statistics import Column, cell
from distill.results.table import RowData

LEAD, RATIO = 3.0, 2.0  # what a column should reach: the teacher's lead in ROUGE-L, and `Separation.ratio`


@dataclass(frozen=True)
class Separation:
    """A column's differences between rows beside those between trainings of one row.

    Attributes:
        column: the column's title.
        lead: the teacher's mean minus that of the row SFT; None if one of them is missing.
        between_rows: the sample standard deviation of the means of the paper's rows that were trained several times;
            None if fewer than two were.
        between_trainings: the standard deviation over trainings, as the root mean square of these rows' own.
    """

    column: str
    lead: float | None
    between_rows: float | None
    between_trainings: float | None

    @property
    def ratio(self) -> float | None:
        """The spread between rows over that between trainings."""
        if self.between_rows is None:
            return None
        return self.between_rows / self.between_trainings if self.between_trainings else float("inf")

    @property
    def fails(self) -> list[str]:
        """What the column lacks, in words; empty for a column that tells rows apart."""
        lacking = []
        if self.lead is not None and self.lead < LEAD:
            lacking.append(f"the teacher leads SFT by {self.lead:.1f}")
        if self.ratio is not None and self.ratio < RATIO:
            lacking.append(f"rows spread {self.ratio:.1f} times as far as trainings")
        return lacking


def separations(rows: Sequence[RowData], columns: Sequence[Column]) -> list[Separation]:
    """The separation of each ROUGE-L column that has one of its two figures."""
    by_label = {row.label: row for row in rows}
    result = []
    for column in columns:
        if not is_rouge(column.metric):
            continue
        several = [row for row in _with_several_trainings(rows, column) if row.row.group == "paper"]
        means = [value.mean for row in several if (value := row.cell(column)) is not None]
        spreads: tuple[float | None, float | None] = (None, None)
        if len(means) > 1:
            spreads = (float(np.std(means, ddof=1)), between_trainings(several, column))
        context = [by_label[label].cell(column) if label in by_label else None for label in CONTEXT]
        teacher, sft = context
        lead = teacher.mean - sft.mean if teacher is not None and sft is not None else None
        if lead is not None or len(means) > 1:
            result.append(Separation(column.title, lead, *spreads))
    return result


def _with_several_trainings(rows: Sequence[RowData], column: Column) -> list[RowData]:
    return [row for row in rows if row.cell(column) is not None and row.lines["train_seed"].nunique() > 1]


def between_trainings(rows: Sequence[RowData], column: Column) -> float | None:
    """The standard deviation over trainings in a column, as the root mean square of the rows with several."""
    cells = [row.cell(column) for row in _with_several_trainings(rows, column)]
    stds = [value.std or 0.0 for value in cells if value is not None]
    return float(np.sqrt(np.mean(np.square(stds)))) if stds else None


def by_teacher(rows: Sequence[RowData], column: Column) -> pd.DataFrame:
    """Each row's first training with each teacher: the mean in a column, by row and the seed of the teacher.

    It has no lines if no row has another teacher. A row that does without one, as SFT from given weights, is the same
    run with each teacher and is left out.
    """
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        others = {
            seed: value.mean
            for seed, data in row.other_teachers.items()
            if data.row.runs != row.row.runs[:1] and (value := data.cell(column))
        }
        own = cell(row.lines[row.lines["run"] == row.row.runs[0]], column) if others else None
        if own is not None and row.descriptions:
            values[row.label] = {str(row.descriptions[0]["shared_seed"]): own.mean, **others}
    return pd.DataFrame.from_dict(values, orient="index")


def between_teachers(values: pd.DataFrame) -> float | None:
    """The standard deviation over teachers (`by_teacher`), as the root mean square of the rows; None without any."""
    return float(np.sqrt(values.var(axis=1, ddof=1).mean())) if len(values) else None
