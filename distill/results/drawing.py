"""What a figure is: its numbers, the function that plots them, and the registry of such functions by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from distill.results.experiment import Experiment
from distill.results.manifest import Manifest
from distill.results.table import RowData


@dataclass(frozen=True)
class FigureData:
    """The data that a figure is drawn from.

    Attributes:
        experiment: the figure's YAML.
        rows: the rows with their measurements; empty for a figure without a model.
        results: the results folder.
        manifest: the figure's manifest.
    """

    experiment: Experiment
    rows: Sequence[RowData]
    results: str | Path
    manifest: Manifest


@dataclass(frozen=True)
class Drawing:
    """A figure's numbers and the function that plots them.

    Attributes:
        frame: the plotted numbers.
        plot: plots the numbers on matplotlib axes; with several panels it gets a list of them.
        table: a table for the markdown page, below the picture; None for no table.
        panels: the number of panels, one below the other, with one x axis.
        notes: lines of the page's header: what was chosen, and what the table's numbers are.
    """

    frame: pd.DataFrame
    plot: Callable[[Any], None]
    table: pd.DataFrame | None = None
    panels: int = 1
    notes: Sequence[str] = ()


FIGURES: dict[str, Callable[[FigureData], Drawing]] = {}


def figure(name: str) -> Callable[[Callable[[FigureData], Drawing]], Callable[[FigureData], Drawing]]:
    """A function decorator that registers a figure under the name that an experiment's `draw` gives."""

    def add(draw: Callable[[FigureData], Drawing]) -> Callable[[FigureData], Drawing]:
        if name in FIGURES:
            raise ValueError(f"the figure name {name} is taken; register another")
        FIGURES[name] = draw
        return draw

    return add
