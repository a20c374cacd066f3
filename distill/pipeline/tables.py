"""A paper's table or figure: composes a config for each row, measures the rows and writes the table's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distill.base.console import say
from distill.base.errors import UserError, failed_job, nearest, of_machine, report_and_go_on, without_folders
from distill.base.files import lock_beside
from distill.base.processes import is_main_process
from distill.config.compose import load
from distill.config.data import evaluation_set_names
from distill.config.reference import ReferenceConfig, overrides_of
from distill.config.schema import Config
from distill.evaluation.benchmarks import Benchmark, check
from distill.evaluation.bertscore import WHEEL, metric_name
from distill.pipeline.checks import differing_engines
from distill.pipeline.measure import Measurements, check_rows, measure, measurements_for
from distill.pipeline.plan import Role
from distill.pipeline.rows import Row
from distill.results.experiment import CONTEXT, Experiment
from distill.results.figures import check_figure, write_figure
from distill.results.folders import check_folders
from distill.results.manifest import WITHOUT_MODEL, Manifest, RowRuns, notes_of, set_descriptions
from distill.results.metrics import BENCHMARKS, TRAINING, VALIDATION, find, names, with_tokenizer
from distill.results.recipes import row_recipe
from distill.results.rendering import Rendered, write_table


@dataclass(frozen=True)
class RowDefinition:
    """A row before its configs are composed.

    Attributes:
        label: its name in the table.
        group: `context` (Teacher and SFT, above the rows of the paper), or that of its config.
        role: the model that is evaluated, `student` or `teacher`.
        overrides: the overrides that distinguish it from other rows.
        reference: what the paper's code ran for it; empty unless the preset is `reference`.
        model: the pair of this row; None if it is the table's pair.
    """

    label: str
    group: str
    role: Role
    overrides: list[str]
    reference: list[ReferenceConfig]
    model: str | None = None


class Table:
    """A table or figure of a paper for one pair.

    Args:
        name: `paper/table`.
        experiment: its YAML file under experiments/.
        overrides: overrides of all rows, from the command line.
        train_seeds: training seeds of the students. None is those that the table was measured with before, or the seed
            of the config.
        notes: notes that are added to the manifest.
        teachers: training seeds of further teachers, which the rows' first training is repeated with. None is those of
            the table's manifest.

    Attributes:
        common: the config that all rows share, with `loss=sft`.
        model: the name of the pair; None for a figure without a model.
        remembered: that the training seeds are those of the table's manifest, as a line for people; empty if they are
            not.
        row_definitions: the rows before their configs are composed, by label.
        rows: for each label a row per training seed.
        other_teachers: for each label a row per further teacher, by the teacher's seed.
        columns: data set and metric of each column by its title, as in result files; None for an average.
        failed: of each row that failed when it was tried last, the reason.

    Raises:
        UserError: a config, the columns or the folders for results are not valid, or the rows have different engines.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        overrides: Sequence[str],
        train_seeds: Sequence[int] | None = None,
        notes: Sequence[str] = (),
        teachers: Sequence[int] | None = None,
    ):
        self.name, self.notes, self.overrides = name, list(notes), list(overrides)
        self.train_seeds = train_seeds
        self.common = load([*experiment.overrides, "loss=sft", *overrides])
        self.experiment = experiment = experiment.for_pair(self.common.model.name)
        check_figure(experiment)  # after the plugins, which may register one
        self._check_columns()
        self.model = self.common.model.name if experiment.model is not None else None
        measured, self.remembered = self._measured_before(), ""
        if train_seeds is None and not any(o.lstrip("+").startswith("train.seed=") for o in overrides):
            self.train_seeds = self._measured_train_seeds(measured)
        self.teachers = list(teachers) if teachers is not None else _teachers_of(measured)
        self.rows: dict[str, list[Row]] = {}
        self.other_teachers: dict[str, dict[str, Row]] = {}
        self.row_definitions = {row.label: row for row in self._row_definitions()}
        self._without_corpus = self._rows_without_corpus()
        check_folders(self.common)
        for label, row in self.row_definitions.items():
            configs = self._configs(row)
            self.rows[label] = [Row(label, config, row.role) for config in configs]
            self.other_teachers[label] = {
                str(seed): Row(label, self._configs(row, [f"train.shared_seed={seed}"])[0], row.role)
                for seed in self.teachers
                if row.group in ("context", "paper") and seed != configs[0].train.shared_seed
            }
        if engines := differing_engines([row.config for rows in self.rows.values() for row in rows]):
            raise UserError(
                f"{name}: the responses of its rows would be written by {' and '.join(engines)}; all rows of a table"
                " need the same engine, so set eval.engine to one of them"
            )
        self.columns = {title: self._column(title) for title in experiment.columns}
        self.failed: dict[str, str] = {}
        if measured is not None and measured.failed:
            runs = {row.label: (row.runs, row.other_teachers) for row in measured.rows}
            same = [x.label for x in self.manifest().rows if runs.get(x.label) == (x.runs, x.other_teachers)]
            self.failed = {label: reason for label, reason in measured.failed.items() if label in same}

    def _check_columns(self) -> None:
        """Refuse columns over data sets and metrics that do not exist.

        A data set that only other pairs have is no mistake: its column is empty.

        Raises:
            UserError: with all such columns and what is close to them.
        """
        special = [TRAINING, VALIDATION, BENCHMARKS]
        known = list(dict.fromkeys([*special, *self.common.data.eval, *evaluation_set_names()]))
        problems = []
        for title, column in self.experiment.columns.items():
            if column.dataset is None:
                continue
            if column.dataset not in known:
                problems.append(
                    f"column {title}: no data set is named {column.dataset}{nearest(column.dataset, known)} (there are"
                    f" {', '.join(known)})"
                )
                continue
            try:
                find(column.dataset, column.metric)
            except KeyError:
                there = names(column.dataset)
                problems.append(
                    f"column {title}: {column.dataset} has no metric {column.metric}{nearest(column.metric, there)}"
                    f" (there are {', '.join(there)})"
                )
        if problems:
            raise UserError([f"{self.name}: {problem}" for problem in problems])

    def _row_definitions(self) -> list[RowDefinition]:
        """The context rows, then the paper's rows. Rows that the pair does not have are left out with a message."""
        experiment = self.experiment
        roles: tuple[Role, Role] = ("teacher", "student")
        context = dict(zip(CONTEXT, roles, strict=True)) if experiment.context else {}
        rows = [RowDefinition(label, "context", role, ["loss=sft"], []) for label, role in context.items()]
        for label, row in experiment.rows.items():
            if not experiment.has_row(label, str(self.model)):
                say(
                    f"{self.name}: row {label} is left out: it is for the pair {row.model} and has no `pairs` entry for"
                    f" {self.model}"
                )
                continue
            words = [*row.overrides, *row.pairs.get(str(self.model), [])]
            own_pair = row.model if self.model == experiment.model else None
            recipe = experiment.recipe(label, own_pair or str(self.model)) if self._is_reference else []
            rows.append(RowDefinition(label, row.group, row.role, words, recipe, own_pair))
        return rows

    def _measured_before(self) -> Manifest | None:
        """The manifest of the table that is there."""
        path = Manifest.path_of(
            self.common.paths.results, str(self.model or WITHOUT_MODEL), self.name, self.common.preset.name
        )
        return Manifest.read(path) if path.is_file() else None

    def _measured_train_seeds(self, measured: Manifest | None) -> list[int] | None:
        """The training seeds of the table's manifest, so that a table is not replaced by another or a smaller one by
        leaving out `train_seeds`; None if there is no manifest."""
        if measured is None or not measured.train_seeds:
            return None
        seeds, path = ", ".join(map(str, measured.train_seeds)), measured.path(self.common.paths.results)
        self.remembered = f"training seeds {seeds}, as in {path} (train_seeds=[...] for others)"
        return measured.train_seeds

    def _configs(self, row: RowDefinition, more: Sequence[str] = ()) -> list[Config]:
        """One config for each training seed. A teacher has one config, since all students share it.

        Args:
            more: overrides beside those of the row and of all rows.
        """
        trainings: list[list[str]] = [[]]
        if row.role != "teacher" and self.train_seeds:
            trainings = [[f"train.seed={seed}"] for seed in self.train_seeds]
        last = [] if row.model is None else [f"model={row.model}"]
        corpus = ["loss.w_lm=0.0"] if row.label in self._without_corpus else []
        of_row = [*corpus, *row.overrides, *overrides_of(row.reference)]
        words = [*self.experiment.overrides, *self._sets(), *of_row, *self.overrides, *last]
        try:
            return [load([*words, *training, *more], of_method=not row.reference) for training in trainings]
        except UserError as error:
            if row.group != "added":
                raise
            raise UserError([f"row.{row.label}: {problem}" for problem in error.problems]) from None

    def _rows_without_corpus(self) -> list[str]:
        """Under `preset=reference` the rows for which no recipe was read, if others of the table have one.

        A corpus that is given is for the recipes that have its term, and no reason to add it to other rows.
        """
        recipes = {
            row.label: row_recipe(self.experiment, row.label, row.model or str(self.model))
            for row in self.row_definitions.values()
            if self._is_reference and row.group != "context" and row.role == "student"
        }
        return [label for label, recipe in recipes.items() if not recipe] if any(recipes.values()) else []

    @property
    def _is_reference(self) -> bool:
        """Whether the rows take the recipes of published code."""
        return self.common.preset.name == "reference"

    def _sets(self) -> list[str]:
        """An override that selects the sets of the columns that the data has; none if `eval.sets` is set already."""
        if any(o.lstrip("+").split("=")[0] == "eval.sets" for o in [*self.experiment.overrides, *self.overrides]):
            return []
        of_columns = dict.fromkeys(c.dataset for c in self.experiment.columns.values())
        sets = [name for name in of_columns if name in self.common.data.eval]
        return [f"eval.sets=[{','.join(sets)}]"] if sets else []

    def _column(self, title: str) -> tuple[str, str] | None:
        """A column's data set and metric as they are named in result files; None for an average.

        The name of BERTScore includes its encoder, and a benchmark's name what selects its questions.

        Raises:
            UserError: the column is BERTScore and no encoder is set.
        """
        column, evaluation = self.experiment.columns[title], self.config.eval
        if column.dataset is None:
            return None
        if column.dataset == BENCHMARKS:
            return BENCHMARKS, Benchmark.parse(column.metric).named(evaluation.benchmarks)
        if column.metric != "bertscore":
            return column.dataset, with_tokenizer(column.metric, evaluation.rouge_tokenizer)
        if evaluation.bertscore.encoder is None:
            raise UserError(
                f"{self.experiment.title}: column {title} is BERTScore, and eval.bertscore.encoder is null; set it to"
                f" a hub encoder, a folder, or {WHEEL}"
            )
        return column.dataset, metric_name(evaluation.bertscore)

    @property
    def config(self) -> Config:
        """The config of the last row's first training. Use it only for values that all rows share."""
        return self.rows[self.labels[-1]][0].config if self.rows else self.common

    @cached_property
    def measurements(self) -> Measurements:
        """The measurements that the columns need of every row."""
        columns = self.experiment.columns.values()
        return measurements_for([(c.dataset, c.metric) for c in columns if c.dataset is not None])

    def manifest(self) -> Manifest:
        """The table's manifest: the runs of its rows, measured or not."""
        rows = [
            RowRuns(
                label,
                row.group,
                row.role,
                trained[0].config.model.name,
                list(dict.fromkeys(r.run for r in trained)),
                trained[0].plan.other_teacher if row.role == "student" else "",
                {seed: other.run for seed, other in self.other_teachers[label].items()},
            )
            for label, row in self.row_definitions.items()
            if (trained := self.rows[label])
        ]
        sets = {name: d for trained in self.rows.values() for name, d in trained[0].plan.sets.items()}
        students = [row.config for trained in self.rows.values() for row in trained if row.role == "student"]
        return Manifest(
            table=self.name,
            model=str(self.model or WITHOUT_MODEL),
            seeds=list(self.config.seed) if self.measurements.texts else [],
            train_seeds=sorted({config.train.seed for config in students}),
            columns={title: None if column is None else list(column) for title, column in self.columns.items()},
            sets=set_descriptions(sets) if self.measurements.texts else {},
            rows=rows,
            preset=self.common.preset.name,
            failed=self.failed,
        )

    def measure(self, chosen: Sequence[str]) -> list[UserError]:
        """Measure the chosen rows one by one. After each row that lacked facts, the table's files are written again.

        Args:
            chosen: the labels of the rows.

        Returns:
            The errors of rows that could not be measured; the other rows are measured nevertheless.

        Raises:
            UserError: a row trains on a corpus and none is given, an evaluation set of the paper's own pair has another
                number of rows than the paper's, or a check of a row fails that is made before its first stage.
        """
        check(self.measurements.benchmarks, self.config.eval.benchmarks)
        self._check_corpus(chosen)
        self._check_counts()
        rows = {label: self._trainings(label) for label in chosen} if self.is_measured else {}
        check_rows([row for trainings in rows.values() for row in trainings], self.measurements)
        failures: list[UserError] = []
        for label, trainings in rows.items():
            self.failed.pop(label, None)
            failures += [failure for row in trainings if (failure := self._measure(row)) is not None]
        return failures

    def _measure(self, row: Row) -> UserError | None:
        """Measure a training of a row, and write the table's files again if it lacked facts.

        Returns:
            Why it failed, if it did; that is noted for the table's files.
        """
        seeds = row.config.train
        say(f"--- {self.name}, row {row.label}, training seed {seeds.seed}, teacher {seeds.shared_seed}")
        try:
            with of_machine():
                if measure(row, self.measurements) and is_main_process():
                    self.write()
            return None
        except UserError as error:
            failure = UserError([f"row {row.label}: {problem}" for problem in error.problems], error.shared)
            report_and_go_on(failure)
            self.failed[row.label] = without_folders(error.problems)
        except Exception as error:  # a fault of the program; the other rows are measured nevertheless
            failure = failed_job(error)
            self.failed[row.label] = without_folders(failure.problems)
        return failure

    def _trainings(self, label: str) -> list[Row]:
        """A row's trainings, those with further teachers included."""
        return [*self.rows[label], *self.other_teachers[label].values()]

    def _check_corpus(self, chosen: Sequence[str]) -> None:
        """Refuse rows whose loss has a corpus term if there is no corpus, before the first of all rows is measured."""
        labels: dict[str, list[str]] = {}  # by message
        for label in chosen:
            for problem in self.rows[label][0].config.missing_corpus:
                labels.setdefault(problem, []).append(label)
        if labels:
            raise UserError([f"{', '.join(rows)}: {problem}" for problem, rows in labels.items()])

    def _check_counts(self) -> None:
        """Refuse `data=dolly` with other sets than the paper's if the pair is the paper's own: the cells would stand
        beside the paper's numbers without being measured on its data."""
        data, is_papers = self.config.data, self.experiment.is_papers_pair(str(self.model))
        if data.name != "dolly" or not is_papers or data.other_counts or self.config.debug.smoke:
            return
        sets = self.rows[self.labels[-1]][0].plan.sets.values() if self.measurements.texts else ()
        problems = [
            f"{d.title}: {d.counted} rows, where the paper has {d.papers}" for d in sets if d.counted is not None
        ]
        if problems:
            raise UserError(
                [f"{problem}; give the published file, or set data.other_counts=true" for problem in problems]
            )

    def write(self) -> Rendered:
        """Write the table's manifest, then all files that are made from it and the runs."""
        results, manifest = self.config.paths.results, self.manifest()
        with lock_beside(manifest.path(results)):
            manifest.notes.extend(notes_of(manifest.path(results), self.notes))
            manifest.write(results)
            write = write_figure if self.experiment.kind == "figure" else write_table
            return write(manifest, self.experiment, results)

    @property
    def labels(self) -> list[str]:
        """The labels of all rows."""
        return list(self.rows)

    @property
    def is_measured(self) -> bool:
        """Whether rows are measured: not if all columns need what no command of a table has (`ColumnConfig.needs`)."""
        columns = self.experiment.columns.values()
        return not columns or any(column.needs is None for column in columns)

    def any_measured(self) -> bool:
        """Whether there is something to write: a row that was measured or failed, or a table that measures none."""
        return (
            not self.rows
            or bool(self.failed)
            or not self.is_measured
            or any(row.folder.description() for rows in self.rows.values() for row in rows)
        )


def _teachers_of(manifest: Manifest | None) -> list[int]:
    """The training seeds of the further teachers that a table was measured with."""
    if manifest is None:
        return []
    return sorted({int(seed) for row in manifest.rows for seed in row.other_teachers})


def chosen_rows(table: Table, rows: Sequence[Any] | None) -> list[str]:
    """The labels of the selected rows, of the context rows, and of added rows, in the table's order.

    Args:
        rows: labels; None selects all rows.

    Raises:
        UserError: the table has no row of such a label.
    """
    known = table.labels
    unknown = [row for row in rows or [] if row not in known]
    if unknown:
        listed = ", ".join(known)
        quoted = next((f'; write a label with a comma as rows=["{label}"]' for label in known if "," in label), "")
        raise UserError(
            [f"rows: no row is named {r}{nearest(str(r), known)} (the rows are {listed}{quoted})" for r in unknown]
        )
    always = [*CONTEXT, *(label for label, row in table.row_definitions.items() if row.group == "added")]
    return [label for label in known if rows is None or label in rows or label in always]
