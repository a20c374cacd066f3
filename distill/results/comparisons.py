"""What a table's rows say of each other: tests against the baseline row, the paper's order and the paper's claims."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from distill.results.experiment import SET_APART, Experiment
from distill.results.printed import PaperNumber
from distill.results.separation import by_teacher
from distill.results.statistics import Agreement, Column, Comparison, compare, holm, order_agreement, p_text
from distill.results.table import Resampled, RowData

LEVEL = 0.05


@dataclass(frozen=True)
class Tested:
    """A comparison of two rows among others of the same family.

    Attributes:
        comparison: the paired test.
        p: its p, adjusted by Holm's method over the family.
        by_teacher: the difference of the rows' first trainings by the seed of their teacher, the table's first; empty
            if they were trained with no other.
    """

    comparison: Comparison
    p: float
    by_teacher: Mapping[str, float] = field(default_factory=dict)

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

    @property
    def turns(self) -> bool:
        """Whether there is a verdict, and the rows' first trainings differ with another sign under another teacher."""
        first, *others = self.by_teacher.values() or [0.0]
        return self.verdict != "open" and any(first * other < 0 for other in others)

    def __str__(self) -> str:
        differences = ", ".join(f"{seed}: {difference:+.2f}" for seed, difference in self.by_teacher.items())
        more = f"; first trainings by teacher {differences}" if differences else ""
        return f"{self.comparison.interval} {self.verdict} (Holm p {p_text(self.p)}{more})"


Comparisons = Mapping[tuple[str, str, str], Tested]  # by row, other row and column


def comparisons(rows: Sequence[RowData], columns: Sequence[Column], experiment: Experiment) -> Comparisons:
    """The tests of a table: all rows against its baseline, and those that the paper says to score above others.

    There are none in columns without scores by prompt, and none of rows that were not measured or were made over
    different copies of a stage. Holm's adjustment is over all tests of the table's own rows, of which two rows that are
    tested both ways are one, and apart from them over those of rows below them (`SET_APART`), so that a
    row that somebody adds leaves the p of the others as it was.
    """
    by_label = {row.label: row for row in rows}
    pairs = [(row.label, experiment.against) for row in rows if row.label != experiment.against]
    pairs += [(row, other) for row, others in experiment.claims.items() for other in others]
    tests: dict[tuple[str, str, str], Comparison] = {}
    for label, other in dict.fromkeys(pairs):
        if label not in by_label or other is None or other not in by_label:
            continue
        if not by_label[label].has_copies_of(by_label[other]):
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
        once = {unordered(key): tests[key].p for key in family}
        p_values = dict(zip(once, holm(list(once.values())), strict=True))
        adjusted |= {key: p_values[unordered(key)] for key in family}
    titled = {column.title: column for column in columns}
    return {
        (label, other, title): Tested(
            test, adjusted[label, other, title], _by_teacher(by_label[label], by_label[other], titled[title])
        )
        for (label, other, title), test in tests.items()
    }


def _by_teacher(row: RowData, other: RowData, column: Column) -> dict[str, float]:
    """The difference of two rows' first trainings by the seed of their teacher, the table's first.

    It is empty without other teachers. Only those count that both rows have in one copy.
    """
    values = by_teacher([row, other], column)
    if not {row.label, other.label} <= set(values.index):
        return {}
    of_both = values.T[[row.label, other.label]].dropna()
    seeds, differences = of_both.index.to_list(), (of_both[row.label] - of_both[other.label]).to_list()
    both = {seed: (one, other.other_teachers.get(seed)) for seed, one in row.other_teachers.items()}
    apart = [seed for seed, (one, two) in both.items() if two is not None and not one.has_copies_of(two)]
    of_one_copy = {seed: value for seed, value in zip(seeds, differences, strict=True) if seed not in apart}
    return of_one_copy if len(of_one_copy) > 1 else {}


def unordered(key: tuple[str, str, str]) -> tuple[frozenset[str], str]:
    """Two rows and a column, however the rows are ordered."""
    return frozenset(key[:2]), key[2]


def claimed(tests: Comparisons, experiment: Experiment) -> Comparisons:
    """The tests of what the paper says of its rows."""
    return {key: test for key, test in tests.items() if key[1] in experiment.claims.get(key[0], ())}


def orders(
    rows: Sequence[RowData], columns: Sequence[Column], paper: Mapping[tuple[str, str], PaperNumber]
) -> dict[str, Agreement]:
    """How far the order of the paper's methods agrees with its printed order, by column: Kendall's tau.

    Teachers are no methods. Where rows were made over different copies of a stage, the order is that of the most rows
    that share theirs.
    """
    agreements: dict[str, Agreement] = {}
    comparable = _of_one_copy([row for row in rows if row.row.group == "paper" and row.row.role == "student"])
    for column in columns:
        both = [
            (row, value, number)
            for row in comparable
            if (value := row.cell(column)) is not None and (number := paper.get((row.label, column.title))) is not None
        ]
        scores = [resampled for row, _, _ in both if (resampled := row.resampled(column)) is not None]
        alike = len(scores) == len(both) and all(x.has_prompts_of(scores[0]) for x in scores)
        draws = _draws(scores, [row.label for row, _, _ in both]) if both and alike else None
        measured, printed = [v.mean for _, v, _ in both], [float(n.mean) for _, _, n in both]
        if (agreement := order_agreement(measured, printed, draws)) is not None:
            agreements[column.title] = agreement
    return agreements


def _of_one_copy(rows: Sequence[RowData]) -> list[RowData]:
    """The most rows, in their order, that were made over the same copies of the stages that they share."""
    largest: list[RowData] = []
    for first in rows:
        together = [first]
        for row in rows:
            if row is not first and all(row.has_copies_of(other) for other in together):
                together.append(row)
        if len(together) > len(largest):
            largest = together
    return [row for row in rows if any(row is other for other in largest)]


def _draws(scores: Sequence[Resampled], labels: Sequence[str]) -> np.ndarray:
    """The rows' resampled means `[RESAMPLES, rows]`.

    As in `compare` a row with one training is taken to vary between trainings as those with several do.
    """
    draws = np.stack([x.means for x in scores], axis=1)
    of_trainings = [np.mean([frame.mean(axis=1).to_numpy() for frame in x.frames], axis=0) for x in scores]
    variances = [float(means.var(ddof=1)) for means in of_trainings if len(means) > 1]
    if variances:
        for place, (means, label) in enumerate(zip(of_trainings, labels, strict=True)):
            if len(means) == 1:
                noise = np.random.default_rng(zlib.crc32(label.encode())).normal(size=len(draws))
                draws[:, place] += np.sqrt(np.mean(variances)) * noise
    return draws
