"""A table's YAML under experiments/: its rows as override lists, its columns, the paper's numbers by reference."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError
from yaml import YAMLError

from distill.base import locations
from distill.base.errors import UserError
from distill.config.evaluation import EvalConfig
from distill.config.section import Section
from distill.evaluation.benchmarks import Benchmark
from distill.evaluation.bertscore import WHEEL, metric_name
from distill.results.long import BENCHMARKS

EXPERIMENTS, PAPER = locations.EXPERIMENTS, locations.PAPER


CONTEXT = ("Teacher", "SFT")  # rows that every table has


class RowConfig(Section):
    """A row: what it overrides, and besides for a pair by name; its names in the paper (its own label if none)."""

    overrides: list[str]
    pairs: dict[str, list[str]] = Field(default_factory=dict)
    paper: list[str] = Field(default_factory=list)


class ColumnConfig(Section):
    """A column: a data set and a metric; the paper's name of it where that is another, by pair.

    `p`: what the paper prints as p of its own row, the last, over the row `against`, by pair.
    """

    dataset: str
    metric: str = "rouge_l"
    paper: dict[str, str] = Field(default_factory=dict)
    p: dict[str, float] = Field(default_factory=dict)


class Experiment(Section):
    """One table of a paper."""

    title: str
    paper: str
    model: str
    sources: list[str]
    against: str
    overrides: list[str] = Field(default_factory=list)
    columns: Annotated[dict[str, ColumnConfig], Field(min_length=1)]
    rows: Annotated[dict[str, RowConfig], Field(min_length=1)]


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


def resolved(experiment: Experiment, evaluation: EvalConfig) -> Experiment:
    """The experiment with its columns' metrics as the long files name them: BERTScore after its encoder, benchmarks
    after what their answers depend on.

    Raises:
        UserError: a column needs an encoder and none is set.
    """
    columns, scored = {}, evaluation.bertscore
    for title, column in experiment.columns.items():
        if column.metric == "bertscore" and scored.encoder is None:
            raise UserError(
                f"{experiment.title}: column {title} is BERTScore, and eval.bertscore.encoder is null; name a hub"
                f" encoder, a folder, or {WHEEL}"
            )
        metric = metric_name(scored) if column.metric == "bertscore" else column.metric
        if column.dataset == BENCHMARKS:
            metric = Benchmark.parse(metric).named(evaluation.benchmarks)
        columns[title] = column.model_copy(update={"metric": metric})
    return experiment.model_copy(update={"columns": columns})


def names() -> list[str]:
    """All tables, as `paper/table`."""
    return list(locations.tables(EXPERIMENTS))


def load(name: str) -> Experiment:
    """The experiment `paper/table`.

    Raises:
        UserError: there is none of that name, or its YAML breaks the schema.
    """
    there = locations.tables(EXPERIMENTS)
    if name not in there:
        close = difflib.get_close_matches(name, there, n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"no table is named {name}{hint} (python -m distill.list tables shows all)")
    try:
        experiment = Experiment.model_validate(OmegaConf.to_container(OmegaConf.load(there[name])))
    except (ValidationError, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"experiments/{name}.yaml: {error}") from None
    pairs = set(locations.options("model"))
    if unknown := sorted({pair for row in experiment.rows.values() for pair in row.pairs} - pairs):
        raise UserError(
            f"experiments/{name}.yaml: pairs names {', '.join(unknown)}; there are {', '.join(sorted(pairs))}"
        )
    if experiment.against not in experiment.rows:
        raise UserError(f"experiments/{name}.yaml: against={experiment.against} is no row")
    return experiment


def printed(experiment: Experiment, model: str) -> tuple[dict[tuple[str, str], Printed], list[str]]:
    """The paper's numbers by (row, column), from the first source that has them, and where later sources differ.

    Args:
        model: the pair; one that the paper does not have is shown beside the numbers of the experiment's own.
    """
    found: dict[tuple[str, str], tuple[Printed, str]] = {}
    differing = []
    for source in experiment.sources:
        frame = pd.read_csv(PAPER / f"{source}.csv", dtype=str, keep_default_na=False)
        for label, row in {**dict.fromkeys(CONTEXT, RowConfig(overrides=[])), **experiment.rows}.items():
            for column, behind in experiment.columns.items():
                name = behind.paper.get(model) or behind.paper.get(experiment.model) or column
                cells = frame[frame["row"].isin([label, *row.paper]) & (frame["column"] == name)]
                if cells.empty:
                    continue
                value = Printed(str(cells.iloc[0]["mean"]), str(cells.iloc[0]["std"]))
                first = found.setdefault((label, column), (value, source))
                if first[0] != value:
                    differing.append(f"{label}, {column}: {first[0]} in {first[1]}, {value} in {source}")
    return {at: value for at, (value, _) in found.items()}, differing


def folder(results: str | Path, model: str, paper: str) -> Path:
    """Where a paper's tables for a pair lie."""
    return Path(results) / model / paper
