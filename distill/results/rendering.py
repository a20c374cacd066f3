"""Writes a table's files: a CSV in the paper's shape, a long CSV, markdown with the paper's numbers, and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from distill.base.files import write_whole
from distill.results import metrics
from distill.results.comparisons import Comparisons, Tested, comparisons
from distill.results.experiment import Experiment
from distill.results.header import compares_with_paper, header, seeds_line
from distill.results.judged import judge_lines, judged_columns
from distill.results.latex import latex_table
from distill.results.manifest import Manifest
from distill.results.markdown import markdown_table
from distill.results.metrics import ROUGE_NAMES
from distill.results.printed import PaperNumber, paper_numbers
from distill.results.sections import (
    claims_section,
    inconsistencies_section,
    note_on_tests,
    recipe_section,
    separation_section,
    teachers_section,
)
from distill.results.statistics import Cell, Column, p_text, printed_p
from distill.results.table import (
    RowData,
    absent_columns,
    cells_table,
    columns_of,
    rows_of,
    transposed,
    write_long,
)

# Columns of a section that are left out where they are empty
OPTIONAL = ("paper", "difference", "against", "p", "p (Holm)", "p from printed", "tokens", "ended %")


@dataclass(frozen=True)
class Rendered:
    """A table or figure whose files were written.

    Attributes:
        frame: the content of the CSV: a table in the paper's shape, or a figure's numbers.
        header: the header lines.
        path: the path of the CSV.
    """

    frame: pd.DataFrame
    header: list[str]
    path: Path


def write_table(manifest: Manifest, experiment: Experiment, results: str | Path) -> Rendered:
    """Write a table's CSV, long CSV, markdown and LaTeX. Only the manifest's runs are read."""
    rows = rows_of(manifest, results)
    lines = [*header(rows, experiment, manifest), *judge_lines(manifest, experiment, results)]
    folder = manifest.folder(results)
    columns = columns_of(experiment, manifest)
    frame = cells_table(rows, columns, absent_columns(experiment, manifest))
    judged = judged_columns(manifest, experiment, results)
    for place, title in enumerate(experiment.columns, list(frame.columns).index("group") + 1):
        if title in judged:
            frame.insert(place, title, judged[title])
    frame = transposed(frame) if experiment.transposed else frame
    sections = [markdown_table(frame), "", *_sections(rows, columns, experiment, manifest, judged)]
    sections += [
        *separation_section(rows, columns),
        *teachers_section(rows, columns),
        *recipe_section(experiment, manifest),
    ]
    text = ["# " + experiment.title, "", *lines, "", seeds_line(manifest, rows), "", *sections]
    write_long(manifest, results, rows)
    path = folder / f"{manifest.name}.csv"
    write_whole(path, frame.to_csv(index=False, lineterminator="\n"))
    write_whole(folder / f"{manifest.name}.md", "\n".join(text).rstrip("\n") + "\n")
    write_whole(folder / f"{manifest.name}.tex", latex_table(frame, rows, columns, experiment, lines))
    return Rendered(frame, lines, path)


def _sections(
    rows: Sequence[RowData],
    columns: Sequence[Column],
    experiment: Experiment,
    manifest: Manifest,
    judged: Mapping[str, Sequence[str]],
) -> list[str]:
    """The markdown below the table: for each column the measured cells, the paper's numbers and the tests."""
    paper, differences = paper_numbers(experiment, manifest.model)
    is_comparable = compares_with_paper(rows, experiment, manifest)
    measured = [column for column in columns if any(row.cell(column) is not None for row in rows)]
    tests = comparisons(rows, measured, experiment)
    text: list[str] = []
    any_printed = False
    for column in measured:
        section = _section(rows, column, tests, experiment, paper, is_comparable)
        any_printed = any_printed or bool(section["p from printed"].any())
        section = section.fillna("").drop(columns=[c for c in OPTIONAL if c in section and not section[c].any()])
        label = experiment.against
        names = {"against": f"against {label} (95 %)", "over": f"over {label}", "paper's over": f"paper's over {label}"}
        unit = [f"{metrics.find(column.dataset, column.metric).unit}.", ""] if column.any_size else []
        text += [f"## {column.title}", "", *unit, markdown_table(section.rename(columns=names)), ""]
    text += _needed(experiment, paper, manifest, judged)
    text += claims_section(rows, measured, experiment, manifest.model, tests)
    text += _papers_own_tests(experiment, manifest.model, paper)
    if any_printed:
        text += [
            f"p from printed: two-sided pooled t-test against {experiment.against} from the means and standard"
            " deviations that the paper prints, taken as over five generation seeds. It is not the p that a paper"
            " prints, which may be of a one-sided test.",
            "",
        ]
    if tests:
        text.append(note_on_tests(tests, rows))
    if differences:
        text += ["", "The documents disagree with each other:", "", *(f"- {line}" for line in differences)]
    return [*text, *([""] if text and text[-1] else []), *inconsistencies_section(experiment)]


def _section(
    rows: Sequence[RowData],
    column: Column,
    tests: Comparisons,
    experiment: Experiment,
    paper: Mapping[tuple[str, str], PaperNumber],
    is_comparable: bool,
) -> pd.DataFrame:
    """The section of a column, one line a row."""
    lines = []
    baseline = next((row for row in rows if row.label == experiment.against), None)
    baseline_number = paper.get((experiment.against or "", column.title))
    baseline_value = baseline.cell(column) if baseline is not None else None
    for row in rows:
        value, number = row.cell(column), paper.get((row.label, column.title))
        test = tests.get((row.label, experiment.against or "", column.title))
        line = _line(row, column, value, number, baseline_number, test, is_comparable)
        if column.any_size and baseline is not None:
            line |= _ratios(value, baseline_value, number, baseline_number)
        lines.append(line)
    return pd.DataFrame(lines)


def _needed(
    experiment: Experiment,
    paper: Mapping[tuple[str, str], PaperNumber],
    manifest: Manifest,
    judged: Mapping[str, Sequence[str]],
) -> list[str]:
    """The paper's numbers in the columns that no command of a table measures."""
    text = []
    for title, column in experiment.columns.items():
        numbers = {label: paper.get((label, title)) for label in experiment.rows}
        if column.needs is not None and any(numbers.values()):
            cells = dict(zip((row.label for row in manifest.rows), judged[title], strict=True))
            lines = [
                {"row": label, "measured": cells[label], "paper": str(number or "")}
                for label, number in numbers.items()
                if label in cells
            ]
            text += [f"## {title}", "", markdown_table(pd.DataFrame(lines)), ""]
    return text


def _line(
    row: RowData,
    column: Column,
    value: Cell | None,
    number: PaperNumber | None,
    baseline_number: PaperNumber | None,
    test: Tested | None,
    is_comparable: bool,
) -> dict[str, str]:
    difference = f"{value.mean - float(number.mean):+.2f}" if is_comparable and value and number else ""
    p = ""
    if (
        number
        and baseline_number
        and number is not baseline_number
        and all(float(n.std or 0) for n in (number, baseline_number))
    ):
        p = f"{printed_p(number.numbers, baseline_number.numbers):.2g}"
    is_rouge_l = column.metric in ROUGE_NAMES and not column.is_average
    length, eos_rate = (
        row.cell(Column("", ((column.dataset, name),))) if is_rouge_l else None for name in ("length", "eos_rate")
    )
    return {
        "row": row.label,
        "measured": str(value or row.unmeasured),
        "paper": str(number or ""),
        "difference": difference,
        "against": test.comparison.interval if test else "",
        "p": p_text(test.comparison.p) if test else "",
        "p (Holm)": p_text(test.p) if test else "",
        "p from printed": p,
        "tokens": f"{length.mean:.1f}" if length else "",
        "ended %": f"{eos_rate.mean:.1f}" if eos_rate else "",
    }


def _ratios(
    value: Cell | None, baseline_value: Cell | None, number: PaperNumber | None, baseline_number: PaperNumber | None
) -> dict[str, str]:
    """A row's cost over the baseline's, measured and in the paper. Unlike costs, ratios compare between machines."""
    paper_ratio = float(number.mean) / float(baseline_number.mean) if number and baseline_number else None
    return {
        "difference": "",
        "over": f"{value.mean / baseline_value.mean:.2f}" if value and baseline_value else "",
        "paper's over": f"{paper_ratio:.2f}" if paper_ratio is not None else "",
    }


def _papers_own_tests(experiment: Experiment, model: str, paper: Mapping[tuple[str, str], PaperNumber]) -> list[str]:
    """The p-values that a paper prints, beside those computed from its printed means and standard deviations."""
    label, lines = experiment.method, []
    for title, column in experiment.columns.items():
        p = column.p.get(model) or column.p.get(experiment.model or "")
        number, baseline_number = paper.get((label, title)), paper.get((experiment.against or "", title))
        if p and number and baseline_number:
            one_sided, two_sided = (
                printed_p(number.numbers, baseline_number.numbers, alternative=alternative)
                for alternative in ("greater", "two-sided")
            )
            p_values = {"paper's p": f"{p:.2g}", "one-sided": f"{one_sided:.2g}", "two-sided": f"{two_sided:.2g}"}
            numbers = {label: str(number), str(experiment.against): str(baseline_number)}
            lines.append({"column": title, **numbers, **p_values})
    if not lines:
        return []
    return [
        "## The paper's own p-values",
        "",
        f"Of {label} over {experiment.against}, beside those of a pooled t-test on the means and standard deviations"
        " that it prints, taken as over five generation seeds.",
        "",
        markdown_table(pd.DataFrame(lines)),
        "",
    ]
