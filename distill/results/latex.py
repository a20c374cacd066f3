"""A table as LaTeX (booktabs), as papers print it: the best cell of a column bold, the second best underlined."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from distill.results import metrics
from distill.results.experiment import SET_APART, Experiment
from distill.results.statistics import Column
from distill.results.table import RowData

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def escaped(text: str) -> str:
    """A text with LaTeX's special characters escaped."""
    return re.sub("[" + re.escape("".join(SPECIAL)) + "]", lambda match: SPECIAL[match[0]], text)


def latex_table(
    frame: pd.DataFrame,
    rows: Sequence[RowData],
    columns: Sequence[Column],
    experiment: Experiment,
    lines: Sequence[str],
) -> str:
    """A `tabular` with a rule between groups of rows, and the header lines as comments above it.

    Marks are given among the students of the paper's rows, in columns of scores of which more is better.

    Args:
        frame: the table in the paper's shape (`cells_table`, transposed if the experiment is).
        rows: its rows.
        columns: its measured columns.
        experiment: its YAML.
        lines: its header lines.
    """
    text = frame.astype(object).map(lambda cell: escaped(str(cell)))
    text.columns = ["" if name == "row" else escaped(str(name)) for name in frame.columns]
    for (label, column), command in _marks(rows, columns).items():
        line, title = (column, label) if experiment.transposed else (label, column)
        at = (frame["row"] == line).to_numpy(), escaped(title)
        text.loc[at] = text.loc[at].map(lambda cell, command=command: f"\\{command}{{{cell}}}")
    groups = list(frame["group"]) if "group" in frame else [""] * len(frame)
    names = [name for name in text.columns if name != "group"]
    body = [" & ".join(names) + r" \\", r"\midrule"]
    for place, (group, (_, cells)) in enumerate(zip(groups, text.iterrows(), strict=True)):
        if place and group != groups[place - 1]:
            body.append(r"\midrule")
            if group in SET_APART:
                body.append(rf"\multicolumn{{{len(names)}}}{{l}}{{\emph{{{escaped(group)}}}}} \\")
        body.append(" & ".join(str(cells[name]) for name in names) + r" \\")
    comments = [f"% {line}" for line in (experiment.title, *lines)]
    tabular = [rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*comments, "% needs \\usepackage{booktabs}", *tabular]) + "\n"


def _marks(rows: Sequence[RowData], columns: Sequence[Column]) -> dict[tuple[str, str], str]:
    """The commands for the best and the second best cells, by row and column; cells that read alike share a mark."""
    marks: dict[tuple[str, str], str] = {}
    students = [row for row in rows if row.row.role == "student" and row.row.group not in SET_APART]
    for column in columns:
        if not metrics.find(column.dataset, column.metric).more_is_better:
            continue
        values = {row.label: round(value.mean, 2) for row in students if (value := row.cell(column)) is not None}
        if len(values) < 2:
            continue
        for best, command in zip(sorted(set(values.values()), reverse=True), ("textbf", "underline"), strict=False):
            marks |= {(label, column.title): command for label, mean in values.items() if mean == best}
    return marks
