"""What a judge's values say of a table's rows: `distill.judge` writes them, and columns of tables show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from distill.results.experiment import Experiment, JudgedConfig
from distill.results.manifest import Manifest, RowRuns

VERDICTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}
PREFER = "prefer "  # before what a preference is by, in the column `what`
AGAINST = " vs "  # between two rows in the label of a row of preferences


def values_path(folder: Path, name: str) -> Path:
    """The file of a judge's values beside the files of a table."""
    return folder / f"{name}_judge_long.csv"


def mean_scores(scores: pd.DataFrame) -> dict[str, tuple[pd.Series, int]]:
    """The mean score of each row by kind, and over how many prompts it is.

    The mean is over prompts of a prompt's mean score, and over the prompts for which every row has one, so that rows
    are comparable.

    Args:
        scores: lines with `row`, `id`, `what` and `value`; NaN where the judge's answer could not be read.
    """
    means = {}
    for kind, of_kind in scores.dropna(subset="value").groupby("what", sort=False):
        by_prompt = of_kind.pivot_table("value", "id", "row", aggfunc="mean", sort=False).dropna()
        means[str(kind)] = by_prompt.mean(), len(by_prompt)
    return means


def shares(verdicts: pd.Series) -> dict[str, float]:
    """The percentages of wins, ties and losses among a pair's verdicts; NaN without one."""
    return {name: 100 * (verdicts == value).mean() for name, value in VERDICTS.items()}


def judged_columns(manifest: Manifest, experiment: Experiment, results: str | Path) -> dict[str, list[str]]:
    """The cells of the columns that need what no command of a table has, in the order of the manifest's rows.

    A column whose values a judge wrote has them, of the judge that was asked last; others say what they need.
    """
    cells = {}
    for title, config in experiment.columns.items():
        if config.needs is None:
            continue
        by_row: dict[str, str] = {}
        if config.judged is not None and (values := _values(config.judged, manifest, results)) is not None:
            by_row = _cells(config.judged, manifest, values)
        cells[title] = [by_row.get(row.label, f"needs {config.needs}") for row in manifest.rows]
    return cells


def judge_lines(manifest: Manifest, experiment: Experiment, results: str | Path) -> list[str]:
    """A header line for each table whose judged responses a table shows, with the judge."""
    judges = {}
    for config in experiment.columns.values():
        if config.judged is not None and (values := _values(config.judged, manifest, results)) is not None:
            judges[config.judged.table] = values["judge"].iloc[0]
    return [f"Judged by {judge} on the responses of {table}." for table, judge in judges.items()]


def _values(judged: JudgedConfig, manifest: Manifest, results: str | Path) -> pd.DataFrame | None:
    """The values of the judge that was asked last, on the set and the generation seeds of that time; None if none was.

    Args:
        judged: what a column shows.
        manifest: of the column's table.
        results: the results folder.
    """
    paper, _, name = judged.table.rpartition("/")
    path = values_path(Path(results) / manifest.model / paper, name)
    if not path.is_file():
        return None
    values = pd.read_csv(path, dtype=str, keep_default_na=False)
    if values.empty:
        return None
    asked = ["judge", "dataset", "seeds"]
    values = values[(values[asked] == values[asked].iloc[-1]).all(axis=1)]
    return values.assign(value=pd.to_numeric(values["value"]))


def _cells(judged: JudgedConfig, manifest: Manifest, values: pd.DataFrame) -> dict[str, str]:
    """The cells of a column by row; without the rows that were not judged."""
    if judged.verdict is not None:
        return _shares_of_rows(values[values["what"] == PREFER + judged.kinds[0]], manifest.rows, judged.verdict)
    of_runs = {run: row.label for row in manifest.rows for run in row.runs}
    scores = values[(values["against"] == "") & values["run"].isin(of_runs) & values["what"].isin(judged.kinds)]
    means = mean_scores(scores.assign(row=scores["run"].map(of_runs)))
    if set(means) != set(judged.kinds):
        return {}
    every = pd.concat([mean for mean, _ in means.values()], axis=1).mean(axis=1, skipna=False).dropna()
    return {str(label): f"{value:.2f}" for label, value in every.items()}


def _shares_of_rows(values: pd.DataFrame, rows: Sequence[RowRuns], verdict: str) -> dict[str, str]:
    """The percentage of a verdict in each row's pair, of the first row's run that was judged last."""
    cells = {}
    for row in rows:
        of_pair = values[(values["row"] == row.label.split(AGAINST)[0]) & values["against_run"].isin(row.runs)]
        verdicts = of_pair[of_pair["run"] == of_pair["run"].tail(1).squeeze()]["value"].dropna()
        if len(verdicts):
            cells[row.label] = f"{shares(verdicts)[verdict]:.1f}"
    return cells
