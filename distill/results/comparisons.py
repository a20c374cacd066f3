"""What a table's rows say of each other: tests against the baseline row, the paper's order and the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.results import metrics
from distill.results.experiment import Experiment, PaperNumber
from distill.results.statistics import Agreement, Column, Comparison, compare, holm, order_agreement, p_text
from distill.results.table import RowData

LEVEL = 0.05


@dataclass(frozen=True)
class Tested:
    """A comparison of two rows among others of the same family.

    Attributes:
        comparison: the paired test.
        p: its p, adjusted by Holm's method over the family.
    """

    comparison: Comparison
    p: float

    @property
    def verdict(self) -> str:
        """Whether the first row scores above the second: `yes`, `reversed`, or `open` where chance may decide it."""
        if self.p >= LEVEL:
            return "open"
        return "yes" if self.comparison.difference > 0 else "reversed"

    def __str__(self) -> str:
        return f"{self.comparison.interval} {self.verdict}, p {p_text(self.p)}"


Comparisons = Mapping[tuple[str, str, str], Tested]  # by row, other row and column


def comparisons(rows: Sequence[RowData], columns: Sequence[Column], experiment: Experiment) -> Comparisons:
    """The tests of a table: all rows against its baseline, and those that the paper says to score above others.

    Columns without scores by prompt have none, and so have rows that were not measured. Holm's adjustment is over all
    of them.
    """
    by_label = {row.label: row for row in rows}
    pairs = [(row.label, experiment.against) for row in rows if row.label != experiment.against]
    pairs += [(row, other) for row, others in experiment.claims.items() for other in others]
    tests: dict[tuple[str, str, str], Comparison] = {}
    for label, other in dict.fromkeys(pairs):
        if label not in by_label or other is None or other not in by_label:
            continue
        for column in (column for column in columns if _has_prompt_scores(column)):
            both = [by_label[name].prompt_scores_of(column) for name in (label, other)]
            if (test := compare(*zip(*both, strict=True))) is not None:
                tests[label, other, column.title] = test
    adjusted = holm([test.p for test in tests.values()])
    return {key: Tested(test, p) for (key, test), p in zip(tests.items(), adjusted, strict=True)}


def claimed(tests: Comparisons, experiment: Experiment) -> Comparisons:
    """The tests of what the paper says of its rows."""
    return {key: test for key, test in tests.items() if key[1] in experiment.claims.get(key[0], ())}


def _has_prompt_scores(column: Column) -> bool:
    return all(metrics.find(dataset, metric).per_prompt for dataset, metric in column.parts)


def orders(
    rows: Sequence[RowData], columns: Sequence[Column], paper: Mapping[tuple[str, str], PaperNumber]
) -> dict[str, Agreement]:
    """How far the order of the paper's rows agrees with its printed order, by column: Kendall's tau."""
    agreements = {}
    for column in columns:
        both = [
            (row, value, number)
            for row in rows
            if row.row.group == "paper"
            and (value := row.cell(column)) is not None
            and (number := paper.get((row.label, column.title))) is not None
        ]
        sets: list[list[np.ndarray]] = []
        if both and _has_prompt_scores(column):
            for frames in zip(*(row.prompt_scores_of(column) for row, _, _ in both), strict=True):
                if frames[0].shape[1] > 1 and all(frame.columns.equals(frames[0].columns) for frame in frames):
                    sets.append([frame.to_numpy() for frame in frames])
        if len(sets) < len(column.parts):
            sets = []
        measured, printed = [v.mean for _, v, _ in both], [float(n.mean) for _, _, n in both]
        if (agreement := order_agreement(measured, printed, sets)) is not None:
            agreements[column.title] = agreement
    return agreements
