"""The notebooks run from beginning to end on the results that are kept, and on every other kept table."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pandas as pd
import pytest
from matplotlib import pyplot
from nbclient import NotebookClient

from distill.base.locations import PAPER

RESULTS = PAPER.parent
NOTEBOOKS = sorted((RESULTS.parent / "notebooks").glob("*.ipynb"))
CHOICE = re.compile(r"^PAIR, TABLE = .*$", re.MULTILINE)


def tables() -> list[tuple[str, str]]:
    """Pair and name of each kept table."""
    paths = sorted(path for path in RESULTS.glob("*/*/*_long.csv"))
    return [(path.parts[-3], f"{path.parts[-2]}/{path.name.removesuffix('_long.csv')}") for path in paths]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_draws(path: Path) -> None:
    """As a stranger runs it: in a kernel of its own, from its own folder."""
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_on_every_kept_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are missing, one row only, cells that need a judge."""
    matplotlib.use("Agg")
    monkeypatch.chdir(path.parent)
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert sum(len(CHOICE.findall(cell)) for cell in cells) == 1
    assert len(tables()) > 10
    for pair, table in tables():
        names: dict[str, Any] = {}
        for cell in cells:
            exec(CHOICE.sub(f"PAIR, TABLE = {pair!r}, {table!r}", cell), names)
        pyplot.close("all")
        if path.stem == "tables":
            points_are_the_tables(names, pair, table)


def points_are_the_tables(names: dict[str, Any], pair: str, table: str) -> None:
    """The mean of a row's points, and of its prompts, is the table's number, to the digits that it prints."""
    frame = pd.read_csv(RESULTS / pair / f"{table}.csv", dtype=str, keep_default_na=False)
    frame = frame.set_index(frame.columns[0])
    cells = frame if set(names["points"]) <= set(frame.columns) else frame.T
    sets = {title: dataset for title, (dataset, metric) in names["columns"].items() if metric == "rouge_l"}
    for title, of_column in names["points"].items():
        for row, mean in of_column.groupby("row")["mean"].mean().items():
            number = Decimal(cells.loc[row, title].split(" ")[0])
            half_a_digit = pytest.approx(float(number), rel=1e-9, abs=0.501 * 10 ** int(number.as_tuple().exponent))
            assert mean == half_a_digit, (pair, table, title, row)
            if title in sets and row in names["TWO_ROWS"]:
                assert names["per_prompt"](row)[sets[title]].mean() == half_a_digit, (pair, table, title, row)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path: Path) -> None:
    """As nbstripout leaves it, so that a difference shows what was written and not what was run."""
    for cell in nbformat.read(path, 4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
