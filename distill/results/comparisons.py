"""What a table's rows say of each other: tests against the baseline row, the paper's order and the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.results.experiment import SET_APART, Experiment
from distill.results.printed import PaperNumber
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
        """Whether the first row scores above the second: `yes`, `reversed`, or `open` if the interval contains 0."""
        if self.comparison.p >= LEVEL:
            return "open"
        return "yes" if self.comparison.difference > 0 else "reversed"

    @property
    def stands(self) -> bool:
        """Whether the verdict is not `open` after Holm's adjustment too."""
        return self.p < LEVEL

    def __str__(self) -> str:
        return f"{self.comparison.interval} {self.verdict} (Holm p {p_text(self.p)})"


Comparisons = Mapping[tuple[str, str, str], Tested]  # by row, other row and column


def comparisons(rows: Sequence[RowData], columns: Sequence[Column], experiment: Experiment) -> Comparisons:
    """The tests of a table: all rows against its baseline, and those that the paper says to score above others.

    There are none in columns without scores by prompt, and none of rows that were not measured. Holm's adjustment is
    over all tests of the table's own rows, and apart from them over those of rows below them (`SET_APART`), so that a
    row that somebody adds leaves the p of the others as it was.
    """
    by_label = {row.label: row for row in rows}
    pairs = [(row.label, experiment.against) for row in rows if row.label != experiment.against]
    pairs += [(row, other) for row, others in experiment.claims.items() for other in others]
    tests: dict[tuple[str, str, str], Comparison] = {}
    for label, other in dict.fromkeys(pairs):
        if label not in by_label or other is None or other not in by_label:
            continue
        for column in columns:
            one, two = (by_label[name].resampled(column) for name in (label, other))
            if one is None or two is None or not one.has_prompts_of(two):
                continue
            test = compare(*zip(one.frames, two.frames, strict=True), draws=(one.means, two.means))
            if test is not None:
                tests[label, other, column.title] = test
    adjusted: dict[tuple[str, str, str], float] = {}
    for apart in (False, True):
        family = [key for key in tests if any(by_label[name].row.group in SET_APART for name in key[:2]) == apart]
        adjusted |= zip(family, holm([tests[key].p for key in family]), strict=True)
    return {key: Tested(test, adjusted[key]) for key, test in tests.items()}


def claimed(tests: Comparisons, experiment: Experiment) -> Comparisons:
    """The tests of what the paper says of its rows."""
    return {key: test for key, test in tests.items() if key[1] in experiment.claims.get(key[0], ())}


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
        scores = [resampled for row, _, _ in both if (resampled := row.resampled(column)) is not None]
        alike = len(scores) == len(both) and all(x.has_prompts_of(scores[0]) for x in scores)
        draws = np.stack([x.means for x in scores], axis=1) if both and alike else None
        measured, printed = [v.mean for _, v, _ in both], [float(n.mean) for _, _, n in both]
        if (agreement := order_agreement(measured, printed, draws)) is not None:
            agreements[column.title] = agreement
    return agreements
