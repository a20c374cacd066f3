"""What a table's rows say of each other: tests against the baseline row, the paper's order and the paper's claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distill.results import metrics
from distill.results.experiment import Experiment, PaperNumber
from distill.results.statistics import Agreement, Column, Comparison, compare, holm, order_agreement
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


def compared(rows: Sequence[RowData], columns: Sequence[Column], pairs: Iterable[tuple[str, str]]) -> Comparisons:
    """The tests of pairs of rows in the columns that have scores by prompt, by (row, other row, column).

    Holm's adjustment is over all of them. A pair with a row that was not measured has none.
    """
    by_label = {row.label: row for row in rows}
    tests: dict[tuple[str, str, str], Comparison] = {}
    for label, other in pairs:
        if label not in by_label or other not in by_label:
            continue
        for column in columns:
            if column.is_average or not metrics.find(column.dataset, column.metric).per_prompt:
                continue
            scores = (by_label[name].prompt_scores(column.dataset, column.metric) for name in (label, other))
            if (test := compare(*scores)) is not None:
                tests[label, other, column.title] = test
    adjusted = holm([test.p for test in tests.values()])
    return {key: Tested(test, p) for (key, test), p in zip(tests.items(), adjusted, strict=True)}


Comparisons = Mapping[tuple[str, str, str], Tested]


def against_baseline(rows: Sequence[RowData], columns: Sequence[Column], baseline: str | None) -> Comparisons:
    """The tests of all rows against the baseline row (`compared`)."""
    return compared(rows, columns, [(row.label, baseline) for row in rows if baseline and row.label != baseline])


def of_claims(rows: Sequence[RowData], columns: Sequence[Column], experiment: Experiment) -> Comparisons:
    """The tests of what the paper says of its rows (`compared`)."""
    return compared(rows, columns, [(row, other) for row, others in experiment.claims.items() for other in others])


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
        scores = None
        if not column.is_average and metrics.find(column.dataset, column.metric).per_prompt:
            frames = [row.prompt_scores(column.dataset, column.metric) for row, _, _ in both]
            same = frames and frames[0].shape[1] > 1 and all(f.columns.equals(frames[0].columns) for f in frames)
            scores = [frame.to_numpy() for frame in frames] if same else None
        measured, printed = [v.mean for _, v, _ in both], [float(n.mean) for _, _, n in both]
        if (agreement := order_agreement(measured, printed, scores)) is not None:
            agreements[column.title] = agreement
    return agreements
