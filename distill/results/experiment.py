"""The YAML file of a table or figure under experiments/."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator
from yaml import YAMLError

from distill.base import locations
from distill.base.errors import UserError, nearest
from distill.config.reference import ReferenceConfig, of_pair
from distill.config.section import Section

EXPERIMENTS = locations.EXPERIMENTS
CONTEXT = ("Teacher", "SFT")  # the first rows of every table, unless its YAML has `context: false`
Group = Literal["paper", "published later", "added"]
SET_APART: tuple[str, ...] = ("published later", "added")  # groups of rows below those of the paper


class RowConfig(Section):
    """A row of a table.

    Attributes:
        overrides: the row's config overrides.
        pairs: further overrides by pair name.
        paper: the row's names in the paper, if they differ from its label.
        role: the model that is measured.
        model: the row's pair, if it differs from the experiment's. A table for another pair than the experiment's has
            the row only if `pairs` has an entry for that pair.
        reference: what the paper's public code ran for the row, where it differs; `preset=reference` adds these
            overrides. For a pair without any the row's method may have some (`MethodConfig.reference`).
        sweep: one config key and its values. The row becomes one row for each value, and `{value}` in its label and in
            `paper` is replaced by the value.
        group: `paper` for a row of the paper, or one of its parts alone; `published later` for another paper's;
            `added` for a row of the command line (`with_row`).
    """

    overrides: list[str] = Field(default_factory=list)
    pairs: dict[str, list[str]] = Field(default_factory=dict)
    paper: list[str] = Field(default_factory=list)
    role: Literal["student", "teacher"] = "student"
    model: str | None = None
    reference: list[ReferenceConfig] = Field(default_factory=list)
    sweep: dict[str, list[float | int | str]] | None = None
    group: Group = "paper"


class JudgedConfig(Section):
    """The values of `distill.judge` that a column shows.

    Attributes:
        table: the table whose responses were judged.
        kinds: the kinds of scores, whose mean is shown; of a preference what it is by, one kind.
        verdict: of a preference the share that is shown: `win`, `tie` or `loss`. The rows are then named `A vs B`.
    """

    table: str
    kinds: list[str]
    verdict: Literal["win", "tie", "loss"] | None = None


class ColumnConfig(Section):
    """A column of a table: a data set and a metric, or an average of other columns.

    Attributes:
        dataset: a data set's name, or `training` (costs), `validation` (the training's validations) or `benchmarks`.
        metric: the metric's name; BERTScore without its encoder.
        average: the titles of the averaged columns, in place of `dataset`.
        needs: in place of both, what a column of the paper's table needs that no command of a table has, such as `a
            judge`; its cells read `needs a judge`.
        judged: where the values of such a column are, once a judge was asked.
        needs_of: the same for pairs by name, in whose tables the column cannot be measured.
        paper: the column's name in the paper by pair, if it differs from the title.
        pairs: the pairs whose tables have the column; None is all.
        batches_a_second: for a column of seconds a sample, of how many samples the batches are that the paper counts a
            second.
        p: the p that the paper prints by pair, for its own method (the last row) against the row `against`.
    """

    dataset: str | None = None
    metric: str = "rouge_l"
    average: list[str] | None = None
    needs: str | None = None
    judged: JudgedConfig | None = None
    needs_of: dict[str, str] = Field(default_factory=dict)
    paper: dict[str, str] = Field(default_factory=dict)
    pairs: list[str] | None = None
    batches_a_second: int | None = None
    p: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_source(self) -> ColumnConfig:
        if [self.dataset, self.average, self.needs].count(None) != 2:
            raise ValueError("a column needs either dataset (and metric), average or needs, one of them")
        return self


class Experiment(Section):
    """One table or figure of a paper.

    Attributes:
        title: the title in words.
        paper: the paper's name.
        model: the paper's pair; None for a figure without a model.
        sources: files of results/paper with the printed numbers. If several have a number, the first file counts.
        blocks: where a source has several pairs one below the other, the first part of their rows' names by pair. The
            last part is the row's label: `OPT|1.3B|KD`.
        inconsistencies: what does not fit together in the paper's numbers, in sentences that stand under the table.
        against: the label of the baseline row, which the other rows are tested against.
        claims: what the paper says of its rows: by a row's label the rows that it is said to score above.
        kind: `table`, or `figure`, drawn by `draw`.
        draw: the name of the figure's function in `distill.results.figures`.
        transposed: whether the paper prints the columns as rows.
        context: whether the table begins with the rows Teacher and SFT.
        overrides: config overrides of all rows.
        reference: the reference recipe of the rows that have none of their own for a pair; see `RowConfig.reference`.
        columns: the columns by title.
        rows: the rows by label.
    """

    title: str
    paper: str
    model: str | None
    sources: list[str] = Field(default_factory=list)
    blocks: dict[str, str] = Field(default_factory=dict)
    inconsistencies: list[str] = Field(default_factory=list)
    against: str | None = None
    claims: dict[str, list[str]] = Field(default_factory=dict)
    kind: Literal["table", "figure"] = "table"
    draw: str | None = None
    transposed: bool = False
    context: bool = True
    overrides: list[str] = Field(default_factory=list)
    reference: list[ReferenceConfig] = Field(default_factory=list)
    columns: dict[str, ColumnConfig] = Field(default_factory=dict)
    rows: dict[str, RowConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_consistency(self) -> Experiment:
        if (self.kind == "figure") != (self.draw is not None):
            raise ValueError("kind: figure and draw go together; give both or neither")
        if self.kind == "table" and not self.columns:
            raise ValueError("a table needs columns; add at least one")
        if (self.model is None) != (not self.rows):
            raise ValueError(
                "rows need a model, and a model needs rows: give both, or neither for a figure without a model"
            )
        if self.kind == "table" and self.against not in self.rows:
            raise ValueError(f"against={self.against} is not a row; the rows are {', '.join(self.rows)}")
        claimed = [label for row, others in self.claims.items() for label in (row, *others)]
        if unknown := [label for label in claimed if label not in self.rows]:
            raise ValueError(f"claims name {unknown[0]}, which is not a row; the rows are {', '.join(self.rows)}")
        if self.context and (taken := [label for label in CONTEXT if label in self.rows]):
            raise ValueError(
                f"a row is labelled {taken[0]}, which every table has above its own rows; give it another label, or set"
                " context: false"
            )
        for title, column in self.columns.items():
            if nested := [
                other for other in column.average or [] if other in self.columns and self.columns[other].average
            ]:
                raise ValueError(f"column {title} averages {nested[0]}, which is an average itself; list its columns")
            if unknown := [other for other in column.average or [] if other not in self.columns]:
                raise ValueError(
                    f"column {title} averages {', '.join(unknown)}, which are not columns; the columns are"
                    f" {', '.join(self.columns)}"
                )
        return self

    @property
    def method(self) -> str:
        """The label of the paper's own method: its last row."""
        return [label for label, row in self.rows.items() if row.group == "paper"][-1]

    @property
    def printed_pairs(self) -> list[str]:
        """The pairs for which the paper prints numbers of the table."""
        of_columns = [name for column in self.columns.values() for name in column.paper]
        return list(dict.fromkeys(p for p in (self.model, *self.blocks, *of_columns) if p is not None))

    def is_papers_pair(self, pair: str) -> bool:
        """Whether the paper prints numbers of the table for a pair."""
        return pair in self.printed_pairs

    def with_row(self, label: str, overrides: Sequence[str]) -> Experiment:
        """The table with one more row below its own.

        Raises:
            UserError: the label is empty, or there already or one that reads like it.
        """
        wrong = "the row has no label" if not label.strip() else None
        if not label.isprintable():
            hidden = next(character for character in label if not character.isprintable())
            wrong = f"{label!r} has {hidden!r}, which cannot be seen"
        elif alike := [x for x in (*self.rows, *CONTEXT) if normalised(x) == normalised(label)]:
            wrong = f"the label {label!r} is taken" if label in alike else f"{label!r} reads like {alike[0]!r}"
        if wrong is not None:
            raise UserError(
                f"row.{' '.join(label.split())}: {wrong}; write row.LABEL='KEY=VALUE KEY=VALUE' with a label of its own"
                f" (the table has {', '.join((*CONTEXT, *self.rows))})"
            )
        row = RowConfig(overrides=list(overrides), group="added")
        return self.model_copy(update={"rows": {**self.rows, label: row}})

    def for_pair(self, pair: str) -> Experiment:
        """The experiment with the columns that a pair's table has."""
        columns = {title: c for title, c in self.columns.items() if c.pairs is None or pair in c.pairs}
        unmeasured = {
            title: ColumnConfig(needs=c.needs_of[pair], paper=c.paper)
            for title, c in columns.items()
            if pair in c.needs_of
        }
        return self.model_copy(update={"columns": {**columns, **unmeasured}})

    def has_row(self, label: str, pair: str) -> bool:
        """Whether a pair's table has a row: one of another pair needs a `pairs` entry for this one."""
        row = self.rows[label]
        return row.model is None or pair == self.model or pair in row.pairs

    def recipe(self, label: str, pair: str) -> list[ReferenceConfig]:
        """The reference recipe of a row for a pair: the row's own, or else the table's; empty if there is neither."""
        return of_pair(self.rows[label].reference, pair) or of_pair(self.reference, pair)

    @property
    def needs_texts(self) -> bool:
        """Whether a column is measured on generated responses."""
        return any(c.dataset not in (None, "training", "validation", "benchmarks") for c in self.columns.values())


def normalised(label: str) -> str:
    """A label as it is read: in lower case, with single spaces."""
    return " ".join(label.split()).casefold()


def names() -> list[str]:
    """The names of all tables and figures, as `paper/table`."""
    return list(locations.tables(EXPERIMENTS))


def papers_pairs() -> set[str]:
    """The pairs for which the papers print numbers, of whatever table."""
    return {pair for name in names() for pair in load(name).printed_pairs}


def load(name: str) -> Experiment:
    """The experiment `paper/table`, with a row for each value of a sweep.

    Raises:
        UserError: no table has the name, or its YAML file is not valid.
    """
    paths = locations.tables(EXPERIMENTS)
    if name not in paths:
        close = difflib.get_close_matches(name, paths, n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"no table is named {name}{hint} (python -m distill.list tables shows all)")
    return parse(paths[name], f"experiments/{name}.yaml")


def from_file(path: Path) -> tuple[str, Experiment]:
    """The experiment in a file of one's own, and its name: the file's `paper`, and the name of the file.

    Raises:
        UserError: the file does not exist or is not valid, or its name is that of a table of the project or no name for
            files.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; give a table's file (.yaml), or a name such as abkd/losses_gpt2"
        )
    experiment = parse(path, str(path))
    for what, part in (("paper", experiment.paper), ("file name", path.stem)):
        if not re.fullmatch(r"\w[\w-]*", part):
            raise UserError(
                f"{path}: the {what} {part!r} is part of the names of the table's files; use letters, digits, _ and -"
            )
    name = f"{experiment.paper}/{path.stem}"
    if name in locations.tables(EXPERIMENTS):
        raise UserError(f"{path}: its results would replace those of the table {name}; rename the file, or its paper")
    return name, experiment


def parse(path: Path, file_name: str) -> Experiment:
    """The experiment in a YAML file.

    Args:
        path: the file.
        file_name: the file's name in messages.

    Raises:
        UserError: the file does not match the schema, or names unknown pairs or sources.
    """
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(raw, dict) and isinstance(raw.get("rows"), dict):
            raw["rows"] = expanded(raw["rows"])
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        found = [
            (".".join(map(str, e["loc"])) or "the file", e["msg"].removeprefix("Value error, ")) for e in error.errors()
        ]
        raise UserError([f"{file_name}: {place}: {message}" for place, message in found]) from None
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(f"{file_name}: {' '.join(str(error).split())}") from None
    pairs = set(locations.options("model"))
    rows = experiment.rows.values()
    references = [*experiment.reference, *(reference for row in rows for reference in row.reference)]
    named = {pair for row in rows for pair in row.pairs} | {p for r in references for p in r.pairs or ()}
    named |= {pair for c in experiment.columns.values() for pair in (*(c.pairs or ()), *c.needs_of)}
    if unknown := sorted(named - pairs):
        raise UserError(f"{file_name}: pairs names {', '.join(unknown)}; the pairs are {', '.join(sorted(pairs))}")
    if absent := [source for source in experiment.sources if not (locations.PAPER / f"{source}.csv").is_file()]:
        known = sorted(file.stem for file in locations.PAPER.glob("*.csv"))
        raise UserError(
            f"{file_name}: sources: results/paper has no {absent[0]}.csv{nearest(absent[0], known)}; leave out sources"
            " for a table without printed numbers"
        )
    return experiment


def expanded(rows: dict[str, Any]) -> dict[str, Any]:
    """The rows of a YAML file, with a row for each value of a sweep in place of the sweep.

    Raises:
        ValueError: a sweep has more than one key, its label does not contain `{value}`, or two rows share a label.
    """
    result: dict[str, Any] = {}
    for label, row in rows.items():
        sweep = row.get("sweep") if isinstance(row, dict) else None
        if not sweep:
            new_rows = {label: row}
        elif len(sweep) != 1 or "{value" not in label:
            raise ValueError(f"row {label}: a sweep needs exactly one key, and its label must contain {{value}}")
        else:
            ((key, values),) = sweep.items()
            common = {k: v for k, v in row.items() if k != "sweep"}
            new_rows = {}
            for value in values:
                paper_names = [name.format(value=value) for name in common.get("paper", [])]
                overrides = [*common.get("overrides", []), f"{key}={value}"]
                new_rows[label.format(value=value)] = {**common, "overrides": overrides, "paper": paper_names}
            if len(new_rows) < len(values):
                raise ValueError(f"row {label}: two values of its sweep give the same label; show more digits of them")
        if duplicates := sorted(new_rows.keys() & result.keys()):
            raise ValueError(f"two rows have the label {duplicates[0]}; labels must be unique")
        result |= new_rows
    return result
