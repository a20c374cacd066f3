"""The sections of a table's page that are over all columns: claims, tests, spread, teachers, recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from distill.results.comparisons import Comparisons, claimed, orders, unordered
from distill.results.experiment import SET_APART, Experiment
from distill.results.manifest import Manifest
from distill.results.markdown import markdown_table
from distill.results.printed import paper_numbers
from distill.results.recipes import pair_recipe, row_recipe
from distill.results.separation import between_teachers, by_teacher, separations
from distill.results.statistics import Agreement, Column
from distill.results.table import RowData

TAU = (
    "tau is Kendall's, between measured and printed values of the paper's rows: 1 for the same order, -1 for the"
    " reverse."
)


TAU_INTERVAL = (
    " Its interval reaches as far as the tau of resampled prompts and trainings lies from the measured one. It covers"
    " the true tau in 80 to 100 of 100 made-up cases. Where all rows have one training it does not tell what another"
    " training would give."
)


CLAIMS = (
    "The cell of a claim has the difference of its two rows with the 95 % interval, `yes`, `reversed`, or `open` where"
    " the interval contains 0, and p adjusted by Holm's method. Interval and p are with one teacher; where both rows"
    " were trained with others too, the difference of their first trainings by teacher follows."
)


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
    if several:
        text += "; where trainings hardly vary, intervals are rather too wide, since the noise of scores counts twice"
    if single:
        where = "; between rows with one training each they tell" if several else "; they tell"
        text += f"{where} whether these trained models differ on such prompts, not whether another training would"
    once = {unordered(key) for key in tests}
    apart = sum(not set_apart.isdisjoint(pair) for pair, _ in once)
    of_own = f"{len(once) - apart} tests of this page"
    below = f" of the table's rows, and for the {apart} of rows below them" if apart else ""
    return f"{text}. p (Holm) is adjusted for the {of_own}{below}."


def inconsistencies_section(experiment: Experiment) -> list[str]:
    """What does not fit together in the paper's numbers."""
    lines = [f"- {line}" for line in experiment.inconsistencies]
    return ["What does not fit together in the paper:", "", *lines, ""] if lines else []


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
