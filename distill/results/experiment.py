"""A table's or figure's YAML under experiments/: its rows as override lists, its columns, the paper's numbers."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator
from yaml import YAMLError

from distill.base import locations
from distill.base.errors import UserError
from distill.config.section import Section

EXPERIMENTS, PAPER = locations.EXPERIMENTS, locations.PAPER
CONTEXT = ("Teacher", "SFT")  # rows that every table has above its own, unless it says `context: false`


class RowConfig(Section):
    """A row of a table.

    Attributes:
        overrides: what makes the row.
        pairs: further overrides for a pair by name.
        paper: its names in the paper, if its own label is none of them.
        role: whose values it has.
        model: a pair of its own, in a table of several pairs. For another pair than the experiment's own such a row is
            there only where `pairs` names that pair.
        sweep: one key with several values: a row for each, its label formatted with `{value}`.
    """

    overrides: list[str] = Field(default_factory=list)
    pairs: dict[str, list[str]] = Field(default_factory=dict)
    paper: list[str] = Field(default_factory=list)
    role: Literal["student", "teacher"] = "student"
    model: str | None = None
    sweep: dict[str, list[float | int | str]] | None = None


class ColumnConfig(Section):
    """A column of a table: a data set and a metric, or the average over other columns.

    Attributes:
        dataset: a data set's name, or `training`, `validation` (the training's own) or `benchmarks`.
        average: titles of the columns that it is the average of; no data set then.
        paper: the paper's name of it by pair, where that is another.
        p: what the paper prints as p of its own row, the last, over the row `against`, by pair.
    """

    dataset: str | None = None
    metric: str = "rouge_l"
    average: list[str] | None = None
    paper: dict[str, str] = Field(default_factory=dict)
    p: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ColumnConfig:
        if (self.dataset is None) == (self.average is None):
            raise ValueError("a column has either dataset (and metric), or average")
        return self


class Experiment(Section):
    """One table or figure of a paper.

    Attributes:
        title: in words.
        paper: which one.
        model: the pair that the paper has; None for a figure without a model.
        sources: files of results/paper with its printed numbers, the first that has a number counts.
        against: the row that others are tested against.
        kind: `table`; `curves`, whose columns are the epochs of a training; `figure`, drawn by `draw`.
        draw: the figure's function (`distill.results.figures`).
        transposed: whether the paper prints our columns as rows.
        context: whether Teacher and SFT stand above the rows.
        overrides: of all rows.
    """

    title: str
    paper: str
    model: str | None
    sources: list[str] = Field(default_factory=list)
    against: str | None = None
    kind: Literal["table", "curves", "figure"] = "table"
    draw: str | None = None
    transposed: bool = False
    context: bool = True
    overrides: list[str] = Field(default_factory=list)
    columns: dict[str, ColumnConfig] = Field(default_factory=dict)
    rows: dict[str, RowConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if (self.kind == "figure") != (self.draw is not None):
            raise ValueError("kind: figure and draw go together")
        if self.kind == "table" and not self.columns:
            raise ValueError("a table needs columns")
        if (self.model is None) != (not self.rows):
            raise ValueError("rows need a model, and a model needs rows; a figure without a model has neither")
        if self.kind == "table" and self.against not in self.rows:
            raise ValueError(f"against={self.against} is no row (rows: {', '.join(self.rows)})")
        for title, column in self.columns.items():
            if unknown := [other for other in column.average or [] if other not in self.columns]:
                raise ValueError(f"column {title} averages {', '.join(unknown)}, which are no columns")
        return self

    @property
    def needs_texts(self) -> bool:
        """Whether responses are written and scored for it."""
        return any(c.dataset not in (None, "training", "validation", "benchmarks") for c in self.columns.values())


@dataclass(frozen=True)
class Printed:
    """A number as a paper prints it."""

    mean: str
    std: str

    @property
    def numbers(self) -> tuple[float, float]:
        """Mean and standard deviation as numbers."""
        return float(self.mean), float(self.std)

    def __str__(self) -> str:
        return f"{self.mean} ({self.std})" if self.std else self.mean


def names() -> list[str]:
    """All tables and figures, as `paper/table`."""
    return list(locations.tables(EXPERIMENTS))


def load(name: str) -> Experiment:
    """The experiment `paper/table`, its sweeps as rows.

    Raises:
        UserError: there is none of that name, or its YAML breaks the schema.
    """
    there = locations.tables(EXPERIMENTS)
    if name not in there:
        close = difflib.get_close_matches(name, there, n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"no table is named {name}{hint} (python -m distill.list tables shows all)")
    return parse(there[name], f"experiments/{name}.yaml")


def parse(path: Path, shown: str) -> Experiment:
    """The experiment in a YAML file.

    Args:
        shown: what messages call the file.

    Raises:
        UserError: it breaks the schema, or names pairs that there are not.
    """
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(raw, dict) and isinstance(raw.get("rows"), dict):
            raw["rows"] = expanded(raw["rows"])
        experiment = Experiment.model_validate(raw)
    except (ValidationError, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(f"{shown}: {error}") from None
    pairs = set(locations.options("model"))
    if unknown := sorted({pair for row in experiment.rows.values() for pair in row.pairs} - pairs):
        raise UserError(f"{shown}: pairs names {', '.join(unknown)}; there are {', '.join(sorted(pairs))}")
    return experiment


def expanded(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows with each sweep as a row for each of its values.

    Raises:
        ValueError: a sweep has not one key, its label does not name `{value}`, or two rows share a label.
    """
    result: dict[str, Any] = {}
    for label, row in rows.items():
        sweep = row.get("sweep") if isinstance(row, dict) else None
        if not sweep:
            several = {label: row}
        elif len(sweep) != 1 or "{value" not in label:
            raise ValueError(f"row {label}: a sweep has one key, and its label names {{value}}")
        else:
            ((key, values),) = sweep.items()
            rest = {k: v for k, v in row.items() if k != "sweep"}
            several = {}
            for value in values:
                names = [name.format(value=value) for name in rest.get("paper", [])]
                own = {**rest, "overrides": [*rest.get("overrides", []), f"{key}={value}"], "paper": names}
                several[label.format(value=value)] = own
            if len(several) < len(values):
                raise ValueError(f"row {label}: two values of its sweep give one label")
        if double := sorted(several.keys() & result.keys()):
            raise ValueError(f"two rows are labelled {double[0]}")
        result |= several
    return result


def printed(experiment: Experiment, model: str) -> tuple[dict[tuple[str, str], Printed], list[str]]:
    """The paper's numbers by (row, column), from the first source that has them, and where later sources differ.

    Args:
        model: the pair; one that the paper does not have is shown beside the numbers of the experiment's own.
    """
    first: dict[tuple[str, str], tuple[Printed, str]] = {}
    differing = []
    rows = {**(dict.fromkeys(CONTEXT, RowConfig()) if experiment.context else {}), **experiment.rows}
    across, down = ("column", "row") if experiment.transposed else ("row", "column")
    for source in experiment.sources:
        frame = pd.read_csv(PAPER / f"{source}.csv", dtype=str, keep_default_na=False)
        for label, row in rows.items():
            for column, config in experiment.columns.items():
                name = config.paper.get(model) or config.paper.get(experiment.model or "") or column
                cells = frame[frame[across].isin([label, *row.paper]) & (frame[down] == name)]
                if cells.empty:
                    continue
                value = Printed(str(cells.iloc[0]["mean"]), str(cells.iloc[0]["std"]))
                earlier = first.setdefault((label, column), (value, source))
                if earlier[0] != value:
                    differing.append(f"{label}, {column}: {earlier[0]} in {earlier[1]}, {value} in {source}")
    return {at: value for at, (value, _) in first.items()}, differing
