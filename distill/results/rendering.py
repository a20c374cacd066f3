"""A table's files from its manifest: CSV in the paper's shape, long CSV, markdown beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from distill.base.files import write_whole
from distill.results import metrics
from distill.results.experiment import Experiment, Printed, printed
from distill.results.header import header, is_smoke, spread
from distill.results.manifest import Manifest
from distill.results.statistics import Cell, Column, Comparison, cell, compare, printed_p
from distill.results.table import (
    MISSING,
    RowData,
    absent_columns,
    columns_of,
    epochs_table,
    rows_of,
    shaped,
    transposed,
    write_long,
)

# Columns of a section that not every metric has
OPTIONAL = ("paper", "difference", "against", "p", "p from printed", "tokens", "ended %")


@dataclass(frozen=True)
class Rendered:
    """A table as it was written.

    Attributes:
        frame: in the paper's shape.
        header: lines about what ran.
        path: of the CSV.
    """

    frame: pd.DataFrame
    header: list[str]
    path: Path


def write_table(manifest: Manifest, experiment: Experiment, results: str | Path) -> Rendered:
    """Write a table's CSV, long CSV and markdown anew; nothing but the manifest's runs is read."""
    rows = rows_of(manifest, results)
    lines = header(rows, experiment, manifest)
    folder = manifest.folder(results)
    if experiment.kind == "curves":
        frame = epochs_table(rows, results)
        text = _page(experiment, lines, spread(manifest, rows), [markdown_table(frame)])
    else:
        columns = columns_of(experiment, manifest)
        frame = shaped(rows, columns, absent_columns(experiment, manifest))
        frame = transposed(frame) if experiment.transposed else frame
        sections = [markdown_table(frame), "", *_sections(rows, columns, experiment, manifest)]
        text = _page(experiment, lines, spread(manifest, rows), sections)
        write_long(manifest, results, rows)
    path = folder / f"{manifest.name}.csv"
    write_whole(path, frame.to_csv(index=False, lineterminator="\n"))
    write_whole(folder / f"{manifest.name}.md", text)
    return Rendered(frame, lines, path)


def _page(experiment: Experiment, lines: Sequence[str], over: str, sections: Sequence[str]) -> str:
    return "\n".join([f"# {experiment.title}", "", *lines, "", over, "", *sections]).rstrip("\n") + "\n"


def _sections(
    rows: Sequence[RowData], columns: Sequence[Column], experiment: Experiment, manifest: Manifest
) -> list[str]:
    """Measured beside paper, column by column, with a paired test against one row."""
    paper, differing = printed(experiment, manifest.model)
    own_pair = manifest.model == experiment.model and not is_smoke(rows)
    against = next((row for row in rows if row.label == experiment.against), None)
    text: list[str] = []
    any_tested = any_printed = False
    for column in columns:
        if all(cell(row.lines, column) is None for row in rows):
            continue
        section, tested = _section(rows, column, against, experiment, paper, own_pair)
        any_tested, any_printed = any_tested or tested, any_printed or bool(section["p from printed"].any())
        section = section.fillna("").drop(columns=[c for c in OPTIONAL if c in section and not section[c].any()])
        other = experiment.against
        names = {"against": f"against {other} (95 %)", "over": f"over {other}", "paper's over": f"paper's over {other}"}
        unit = [f"{metrics.find(column.dataset, column.metric).unit}.", ""] if column.any_size else []
        text += [f"## {column.title}", "", *unit, markdown_table(section.rename(columns=names)), ""]
    text += _papers_own_tests(experiment, manifest.model, paper)
    if any_printed:
        text += [
            f"p from printed: two-sided pooled t-test against {experiment.against} from the means and standard"
            " deviations that the paper prints, taken as over five generation seeds. It is not the p that a paper"
            " prints, which may be of a one-sided test.",
            "",
        ]
    if any_tested:
        text.append(
            f"Tests against {experiment.against} are paired over prompts, of each prompt's mean over seeds: bootstrap"
            " interval, and two-sided p of the permutation test; they tell whether these trained models differ on such"
            " prompts, not whether another training would."
        )
    if differing:
        text += ["", "The documents disagree with each other:", "", *(f"- {line}" for line in differing)]
    return text


def _section(
    rows: Sequence[RowData],
    column: Column,
    against: RowData | None,
    experiment: Experiment,
    paper: Mapping[tuple[str, str], Printed],
    own_pair: bool,
) -> tuple[pd.DataFrame, bool]:
    """A column's lines, and whether a row was tested."""
    lines, tested = [], False
    per_prompt = not column.is_average and metrics.find(column.dataset, column.metric).per_prompt
    printed_against = paper.get((experiment.against or "", column.title))
    base = cell(against.lines, column) if against is not None else None
    for row in rows:
        value, number = cell(row.lines, column), paper.get((row.label, column.title))
        test = None
        if per_prompt and against is not None and row is not against:
            both = (one.prompt_means(column.dataset, column.metric) for one in (row, against))
            test = compare(*both)
            tested = tested or test is not None
        line = _line(row, column, value, number, printed_against, test, own_pair)
        if column.any_size and against is not None:
            line |= _ratios(value, base, number, printed_against)
        lines.append(line)
    return pd.DataFrame(lines), tested


def _line(
    row: RowData,
    column: Column,
    value: Cell | None,
    number: Printed | None,
    against: Printed | None,
    test: Comparison | None,
    own_pair: bool,
) -> dict[str, str]:
    difference = f"{value.mean - float(number.mean):+.2f}" if own_pair and value and number else ""
    p = ""
    if number and against and number is not against and all(float(one.std or 0) for one in (number, against)):
        p = f"{printed_p(number.numbers, against.numbers):.2g}"
    whole = column.metric == "rouge_l" and not column.is_average
    length, ended = (
        cell(row.lines, Column("", ((column.dataset, name),))) if whole else None for name in ("length", "eos_rate")
    )
    return {
        "row": row.label,
        "measured": str(value or MISSING),
        "paper": str(number or ""),
        "difference": difference,
        "against": f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]" if test else "",
        "p": test.p_text if test else "",
        "p from printed": p,
        "tokens": f"{length.mean:.1f}" if length else "",
        "ended %": f"{ended.mean:.1f}" if ended else "",
    }


def _ratios(value: Cell | None, base: Cell | None, number: Printed | None, theirs: Printed | None) -> dict[str, str]:
    """What a row costs over another: machines differ, and ratios less."""
    return {
        "difference": "",
        "over": f"{value.mean / base.mean:.2f}" if value and base else "",
        "paper's over": f"{float(number.mean) / float(theirs.mean):.2f}" if number and theirs else "",
    }


def _papers_own_tests(experiment: Experiment, model: str, paper: Mapping[tuple[str, str], Printed]) -> list[str]:
    """The p-values that a paper prints beside those that its printed means and standard deviations give."""
    own, lines = list(experiment.rows)[-1], []
    for title, column in experiment.columns.items():
        p = column.p.get(model) or column.p.get(experiment.model or "")
        ours, theirs = paper.get((own, title)), paper.get((experiment.against or "", title))
        if p and ours and theirs:
            one, two = (printed_p(ours.numbers, theirs.numbers, alternative=a) for a in ("greater", "two-sided"))
            numbers = {"paper's p": f"{p:.2g}", "one-sided": f"{one:.2g}", "two-sided": f"{two:.2g}"}
            lines.append({"column": title, own: str(ours), str(experiment.against): str(theirs), **numbers})
    if not lines:
        return []
    return [
        "## The paper's own p-values",
        "",
        f"Of {own} over {experiment.against}, beside those of a pooled t-test on the means and standard deviations that"
        " it prints, taken as over five generation seeds.",
        "",
        markdown_table(pd.DataFrame(lines)),
        "",
    ]


def markdown_table(data: pd.DataFrame) -> str:
    """A frame as a markdown table; its column `group` is left out."""
    names = [c for c in data.columns if c != "group"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(x) for x in line) + " |" for line in data[names].itertuples(index=False)]
    return "\n".join(lines)
