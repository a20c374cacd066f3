"""`python -m distill.table PAPER/TABLE [overrides]`: run what is missing of a paper's table and write it.

Beside the overrides of `distill.run` it takes `rows=[A,B]` (these rows and the context rows only),
`train_seeds=[1,2,3]` (students trained from several seeds) and `note="two rows ran at a time"`, what the program cannot
know of a run; it is kept in the table's manifest and stands in its header from then on.
`--config-dir DIR` adds a folder of your own configs (`DIR/loss/NAME.yaml`) and tables
(`DIR/experiments/PAPER/TABLE.yaml`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.base.errors import UserError, command, report

SEEDS = "seed=[10,20,30,40,50]"


def main(words: list[str]) -> int:
    """Build one table; see the module."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    table, chosen = prepare(words)
    return table.run(chosen)


def prepare(words: list[str]) -> tuple[Table, list[str]]:
    """The table that a command line names, and the labels of its chosen rows."""
    from distill.base.locations import take_config_dir
    from distill.results import experiment as experiments

    words = take_config_dir(words)
    if not words:
        raise UserError("which table? Write PAPER/TABLE (python -m distill.list tables shows all)")
    name, overrides = words[0], words[1:]
    experiment = experiments.load(name)
    rows, overrides = option(overrides, "rows")
    train_seeds, overrides = option(overrides, "train_seeds")
    notes = [w.removeprefix("note=") for w in overrides if w.startswith("note=")]
    overrides = [w for w in overrides if not w.startswith("note=")]
    _refuse_row_settings(experiment, overrides, train_seeds)
    chosen = _chosen(experiment, rows)
    if not any(o.split("=")[0] == "seed" for o in overrides):
        overrides = [SEEDS, *overrides]
    if not any(o.split("=")[0] == "model" for o in overrides):
        overrides = [f"model={experiment.model}", *overrides]
    return Table(name, experiment, [*experiment.overrides], overrides, train_seeds, notes), chosen


def option(words: list[str], name: str) -> tuple[list[Any] | None, list[str]]:
    """The value of `name=[...]` among the words, and the other words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    rest = [w for w in words if not w.startswith(f"{name}=")]
    given = [w for w in words if w.startswith(f"{name}=")]
    if not given:
        return None, rest
    readings = given[-1:]
    if listed := re.fullmatch(rf"{name}=\[(.*)\]", given[-1]):  # a quote begins a string; Jensen's KL is none
        quoted = ",".join(f'"{one.strip()}"' for one in listed[1].split(","))
        readings.append(f"{name}=[{quoted}]")
    for word in readings:
        try:
            value = OverridesParser.create().parse_override(word).value()
            break
        except HydraException:
            continue
    else:
        raise UserError(f"{given[-1]}: not a list; write {name}=[a,b]")
    values = value if isinstance(value, list) else [value]
    return [v if isinstance(v, (int, bool)) else str(v) for v in values], rest


def _refuse_row_settings(experiment: Any, overrides: list[str], train_seeds: list[Any] | None) -> None:
    """What makes a row that row cannot be set for all of them: they would keep their labels and lie."""
    keys = {o: _key(o) for o in overrides}
    model = next((o.split("=")[1] for o in reversed(overrides) if _key(o) == "model"), experiment.model)
    rows = {_key(word) for row in experiment.rows.values() for word in [*row.overrides, *row.pairs.get(model, [])]}
    own = [o for o, key in keys.items() if key.split(".")[0] in ("loss", "method", "sampler") or key in rows]
    problems = [f"{o}: each row of a table has its own; python -m distill.run takes it" for o in own]
    if train_seeds is not None:
        problems += [
            f"{o}: train_seeds={train_seeds} is given too; keep one" for o, k in keys.items() if k == "train.seed"
        ]
    if problems:
        raise UserError(problems)


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def _chosen(experiment: Any, rows: list[Any] | None) -> list[str]:
    from distill.base.errors import nearest
    from distill.results.report import CONTEXT

    known = [*CONTEXT, *experiment.rows]
    unknown = [r for r in rows or [] if r not in known]
    if unknown:
        raise UserError(
            [f"rows: no row is named {r}{nearest(str(r), known)} (rows: {', '.join(known)})" for r in unknown]
        )
    return [label for label in known if rows is None or label in CONTEXT or label in rows]


class Table:
    """A table of a paper: its rows as configs, its columns and its files.

    Args:
        notes: what its manifest shall tell from now on.
    """

    def __init__(
        self,
        name: str,
        experiment: Any,
        own: list[str],
        overrides: list[str],
        train_seeds: list[Any] | None,
        notes: Sequence[str] = (),
    ):
        from distill.config import load
        from distill.evaluation.benchmarks import Benchmark
        from distill.pipeline.measure import Files
        from distill.pipeline.values import Row
        from distill.results.long import BENCHMARKS, TRAINING

        self.name, self.notes = name, list(notes)
        self.rows: dict[str, list[Row]] = {}
        common = load([*own, "loss=sft", *overrides])
        if not any(o.lstrip("+").split("=")[0] == "eval.sets" for o in [*own, *overrides]):
            present = common.data.eval
            sets = dict.fromkeys(c.dataset for c in experiment.columns.values() if c.dataset in present)
            own += [f"eval.sets=[{','.join(sets)}]"] if sets else []
        columns = experiment.columns.values()
        self.texts = any(c.dataset not in (TRAINING, BENCHMARKS) for c in columns)
        self.benchmarks = [Benchmark.parse(c.metric) for c in columns if c.dataset == BENCHMARKS]
        definitions = {"Teacher": ["loss=sft"], "SFT": ["loss=sft"]} | {
            label: [*row.overrides, *row.pairs.get(common.model.name, [])] for label, row in experiment.rows.items()
        }
        for label, words in definitions.items():
            role: Any = "teacher" if label == "Teacher" else "student"
            trainings = [f"train.seed={s}" for s in train_seeds or []] if label != "Teacher" else []
            self.rows[label] = [
                Row(label, load([*own, *words, *overrides, *training]), role)
                for training in ([[t] for t in trainings] or [[]])
            ]
        engines = {row.config.eval.engine for rows in self.rows.values() for row in rows}
        if len(engines) > 1:
            raise UserError(f"{name}: rows by {' and '.join(sorted(engines))}; a table has one engine, set eval.engine")
        self.config = self.rows["SFT"][0].config
        from distill.results.experiment import folder, resolved

        self.experiment = resolved(experiment, self.config.eval)
        paper, table = name.split("/")
        self.folder = folder(self.config.paths.results, self.config.model.name, paper)
        self.files = Files(self.folder, table)
        self.table = table

    def run(self, chosen: list[str]) -> int:
        """Measure the chosen rows one by one; the table's files are written anew after each."""
        from distill.base.console import say
        from distill.base.processes import is_main_process
        from distill.evaluation.benchmarks import check
        from distill.pipeline.measure import measure, told
        from distill.results import long

        check(self.benchmarks, self.config.eval.benchmarks)
        failures, shaped = [], None
        for label in chosen:
            for row in self.rows[label]:
                started = time.time()
                say(f"--- {self.name}, row {label}, training seed {row.config.train.seed}")
                try:
                    _, measured = measure(row, self.files, self.texts, self.benchmarks)
                except UserError as error:
                    failures.append(UserError([f"row {label}: {p}" for p in error.problems]))
                    report(failures[-1])
                    continue
                if measured is not None:
                    measured["wall_seconds"] = round(time.time() - started, 1)
                elif row.run not in self.manifest_runs():  # stopped between the long file and the manifest
                    measured = told(row, self.benchmarks)
                if is_main_process():
                    with long.file_lock(self.manifest):
                        shaped = self.write({row.run: measured} if measured else {})
        if shaped is not None:
            from distill.results.report import show

            rouge = all(c.metric.startswith("rouge_l") for c in self.experiment.columns.values())
            show(shaped, f"{self.experiment.title} - {self.config.model.name}{', ROUGE-L' if rouge else ''}")
            for line in self.header:
                say(line)
            say(f"table: {self.folder / self.table}.csv")
        return 2 if failures else 0

    @property
    def manifest(self) -> Path:
        """The manifest's file."""
        return self.folder / f"{self.table}.manifest.json"

    def manifest_runs(self) -> set[str]:
        """The runs that the manifest tells of."""
        return set(json.loads(self.manifest.read_text())["rows"]) if self.manifest.is_file() else set()

    def measured(self) -> list[Any]:
        """The rows that the long file holds, with the generation seeds that are asked for."""
        from distill.results import long
        from distill.results.report import Measured

        values, found = long.read(self.files.values, long.VALUES), []
        for label, rows in self.rows.items():
            lines = values[(values["row"] == label) & values["run"].isin([row.run for row in rows])]
            lines = lines[lines["seed"].isin(self.config.seed)]
            if not lines.empty:
                found.append(Measured(label, lines, sorted(set(lines["run"]))))
        return found

    def headline(self, measured: list[Any]) -> list[str]:
        """What ran, at which scale, and which of the rows are not to be compared."""
        from distill.results.long import TRAINING
        from distill.results.report import apart, decoding, machines, partly, scale

        told = json.loads(self.manifest.read_text()) if self.manifest.is_file() else {"rows": {}}
        rows = told["rows"]
        shown = [rows[run] for one in measured for run in one.runs if run in rows]
        last = next((row for row in reversed(shown) if row["role"] == "student"), shown[-1] if shown else {})
        costs = any(column.dataset == TRAINING for column in self.experiment.columns.values())
        return [
            *scale(self.config, self.experiment, last, decoding(measured) if self.texts else []),
            *partly(measured, self.config.seed, self.train_seeds),
            *apart(shown),
            *(machines(shown) if costs else []),
            *told.get("notes", []),
        ]

    @property
    def train_seeds(self) -> list[int]:
        """The students' training seeds."""
        return sorted({row.config.train.seed for row in self.rows["SFT"]})

    def write(self, told: dict[str, dict[str, Any]]) -> Any:
        """Write the CSV, the markdown and the manifest from the long files."""
        from distill.pipeline.measure import seeds_name
        from distill.results import long
        from distill.results.report import frame, markdown, update_manifest, varied

        measured = self.measured()
        update_manifest(self.manifest, self.name, told, Path.cwd(), self.notes)
        self.header = self.headline(measured)
        shaped = frame(measured, self.experiment)
        long.replace(self.folder / f"{self.table}.csv", shaped.to_csv(index=False, lineterminator="\n").encode())
        scores = long.read(self.files.scores, long.SCORES)
        topics = {e.id: e.topic for d in self.rows["SFT"][0].plan.sets.values() for e in d.examples}
        scores["topic"] = scores["id"].map(topics)
        text = markdown(
            measured,
            self.experiment,
            self.config.model.name,
            scores[scores["seeds"] == seeds_name(self.config.seed)],
            self.header,
            varied(self.train_seeds, list(self.config.seed) if self.texts else []),
        )
        long.replace(self.folder / f"{self.table}.md", text.encode())
        return shaped


if __name__ == "__main__":
    raise SystemExit(command(main))
