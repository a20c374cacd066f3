"""A frame as a markdown table."""

from __future__ import annotations

import pandas as pd

from distill.results.experiment import SET_APART


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
