"""Writes a table's files: a CSV in the paper's shape, a long CSV, markdown with the paper's numbers, and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from distill.base.files import write_whole
from distill.results import metrics
from distill.results.comparisons import Comparisons, Tested, claimed, comparisons, orders
from distill.results.experiment import SET_APART, Experiment, PaperNumber, paper_numbers
from distill.results.header import compares_with_paper, header, seeds_line
from distill.results.judged import judge_lines, judged_columns
from distill.results.latex import latex_table
from distill.results.manifest import Manifest
from distill.results.metrics import ROUGE_NAMES
from distill.results.recipes import pair_recipe, row_recipe
from distill.results.separation import between_teachers, by_teacher, separations
from distill.results.statistics import Agreement, Cell, Column, p_text, printed_p
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

TAU = (
    "tau is Kendall's, between measured and printed values of the paper's rows: 1 for the same order, -1 for the"
    " reverse."
)
TAU_INTERVAL = (
    " Its 95 % interval is over resampled prompts and, of rows with several, trainings; of rows with one it does not"
    " tell what another training would give."
)
CLAIMS = (
    "The cell of a claim has the difference of its two rows with the 95 % interval, `yes`, `reversed`, or `open` where"
    " the interval contains 0, and p adjusted by Holm's method."
)


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


def inconsistencies_section(experiment: Experiment) -> list[str]:
    """What does not fit together in the paper's numbers."""
    lines = [f"- {line}" for line in experiment.inconsistencies]
    return ["What does not fit together in the paper:", "", *lines, ""] if lines else []


def note_on_tests(tests: Comparisons, rows: Sequence[RowData]) -> str:
    """What the tests of a page are over, in words.

    Args:
        tests: all tests of the page.
        rows: the rows of the page.
    """
    set_apart = {row.label for row in rows if row.row.group in SET_APART}
    counts = [(test.comparison.fewest_trainings, test.comparison.trainings) for test in tests.values()]
    several, single = any(most > 1 for _, most in counts), any(most == 1 for _, most in counts)
    what = "resampled trainings and prompts" if several else "resampled prompts"
    text = (
        "Tests are paired over prompts: interval and two-sided p from one t distribution, whose standard error is over"
        f" {what}"
    )
    if several and any(fewest == 1 < most for fewest, most in counts):
        text += "; a row with one training is taken to vary between trainings as the row beside it"
    if single:
        where = "; between rows with one training each they tell" if several else "; they tell"
        text += f"{where} whether these trained models differ on such prompts, not whether another training would"
    apart = sum(any(name in set_apart for name in key[:2]) for key in tests)
    of_own = f"{len(tests) - apart} tests of this page"
    below = f" of the table's rows, and for the {apart} of rows below them" if apart else ""
    return f"{text}. p (Holm) is adjusted for the {of_own}{below}."


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


def claims_table(experiment: Experiment, agreements: Mapping[str, Agreement], tests: Comparisons) -> pd.DataFrame:
    """What the paper says of its rows, column by column, a line a claim: their order, and which score above which.

    Args:
        experiment: the table.
        agreements: how far the order of rows agrees with the printed one (`comparisons.orders`).
        tests: the tests of the paper's claims (`comparisons.claimed`).
    """
    lines = []
    if agreements:
        counts = sorted({agreement.rows for agreement in agreements.values()})
        of_rows = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append({"claim": f"the order of {of_rows} rows: tau"} | {k: str(v) for k, v in agreements.items()})
    for row, others in experiment.claims.items():
        for other in others:
            cells = {column: str(test) for (*pair, column), test in tests.items() if pair == [row, other]}
            lines += [{"claim": f"{row} above {other}", **cells}] if cells else []
    titles = [title for title in experiment.columns if any(title in line for line in lines)]
    return pd.DataFrame(lines, columns=["claim", *titles]).fillna("")


def claims_section(
    rows: Sequence[RowData], columns: Sequence[Column], experiment: Experiment, model: str, tests: Comparisons
) -> list[str]:
    """The section of a page on what the paper says of its rows; empty if nothing of it was measured.

    Args:
        tests: all tests of the page (`comparisons`).
    """
    agreements = orders(rows, columns, paper_numbers(experiment, model)[0])
    of_claims = claimed(tests, experiment)
    if not agreements and not of_claims:
        return []
    text = ["## What the paper says", "", markdown_table(claims_table(experiment, agreements, of_claims)), ""]
    if agreements:
        text += [TAU + (TAU_INTERVAL if any(x.low is not None for x in agreements.values()) else ""), ""]
    text += [CLAIMS, ""] if of_claims else []
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


def separation_section(rows: Sequence[RowData], columns: Sequence[Column]) -> list[str]:
    """How far rows spread beside trainings, column by column; empty for a table of single trainings."""
    of_columns = [s for s in separations(rows, columns) if s.ratio is not None]
    if not of_columns:
        return []
    lines = [
        {
            "column": s.column,
            "teacher over SFT": "" if s.lead is None else f"{s.lead:+.2f}",
            "std of rows": f"{s.between_rows:.2f}",
            "std of trainings": f"{s.between_trainings:.2f}",
            "ratio": f"{s.ratio:.1f}",
        }
        for s in of_columns
    ]
    return [
        "",
        "## Differences between rows and between trainings",
        "",
        "The standard deviation of the rows' means, beside that of a row's trainings (root mean square over rows).",
        "",
        markdown_table(pd.DataFrame(lines)),
    ]


def teachers_section(rows: Sequence[RowData], columns: Sequence[Column]) -> list[str]:
    """What other teachers do to the rows; empty for a table with one teacher."""
    text: list[str] = []
    for column in columns:
        values = by_teacher(rows, column)
        if len(values):
            shown = values.rename(columns="teacher {}".format).map("{:.2f}".format).replace("nan", "")
            shown["std"] = values.std(axis=1, ddof=1).map("{:.2f}".format)
            table = markdown_table(shown.rename_axis("row").reset_index())
            text += ["", f"### {column.title}", "", table, ""]
            students = values[values.index.isin([row.label for row in rows if row.row.role == "student"])]
            if (square := between_teachers(students)) is not None:
                middle = students.std(axis=1, ddof=1).median()
                what = "Standard deviation over teachers of the students' rows"
                text += [f"{what}: root mean square {square:.2f}, median {middle:.2f}."]
    if not text:
        return []
    return [
        "",
        "## Other teachers",
        "",
        "Each row's first training with the table's teacher, and with teachers that were trained with other seeds.",
        *text,
    ]


def recipe_section(experiment: Experiment, manifest: Manifest) -> list[str]:
    """Under `preset=reference` a table of what published code ran for each row, with the files that say so."""
    if manifest.preset != "reference":
        return []
    lines = []
    rows = [row for row in manifest.rows if row.group == "paper"]
    recipes = {f"all rows of `{pair}`": pair_recipe(pair) for pair in dict.fromkeys(row.model for row in rows)}
    recipes |= {row.label: row_recipe(experiment, row.label, row.model) for row in rows}
    for label, recipe in recipes.items():
        for reference in recipe:
            overrides = f"`{' '.join(reference.overrides)}`" if reference.overrides else "nothing else"
            lines.append({"row": label, "overrides": overrides, "source": reference.link, "note": reference.note})
        if not recipe:
            source = "none was read for this pair; as under `preset=clean`, without a corpus"
            lines.append({"row": label, "overrides": "", "source": source, "note": ""})
    return [
        "",
        "## What published code ran",
        "",
        "The rows have these settings beside the preset's quirks (docs/fidelity.md). The header says which rows had no"
        " corpus.",
        "",
        markdown_table(pd.DataFrame(lines)),
        "",
    ]


def markdown_table(data: pd.DataFrame) -> str:
    """A frame as a markdown table. In place of the column `group` a line stands above rows that are not the paper's."""
    names = [c for c in data.columns if c != "group"]
    lines = ["| " + " | ".join(map(_in_cell, names)) + " |", "|" + "---|" * len(names)]
    before = ""
    for _, line in data.iterrows():
        group = str(line.get("group", ""))
        if group != before and group in SET_APART:
            lines.append("| " + " | ".join([f"*{group}*", *[""] * (len(names) - 1)]) + " |")
        before = group
        lines.append("| " + " | ".join(_in_cell(line[name]) for name in names) + " |")
    return "\n".join(lines)


def _in_cell(content: object) -> str:
    return str(content).replace("|", "\\|")
