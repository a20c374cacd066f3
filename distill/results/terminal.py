"""Tables on the terminal."""

from __future__ import annotations

import pandas as pd
from rich.markup import escape
from rich.table import Table

from distill.base.console import console


def show(frame: pd.DataFrame, title: str) -> None:
    """Print a table, with a rule between rows whose values of the column `group` differ."""
    table = Table(title=escape(title), title_justify="left")
    names = [c for c in frame.columns if c != "group"]
    for name in names:
        table.add_column(name, justify="left" if name == "row" else "right", no_wrap=name == "row")
    lines = frame.to_dict("records")
    for i, line in enumerate(lines):
        ends_group = i + 1 < len(lines) and line.get("group") != lines[i + 1].get("group")
        table.add_row(*(escape(str(line[name])) or "-" for name in names), end_section=ends_group)
    console.print(table)
