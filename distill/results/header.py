"""A table's header lines: what ran, at which scale, and which of the rows are not to be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.results import metrics
from distill.results.experiment import Experiment
from distill.results.manifest import Manifest
from distill.results.table import RowData, absent_columns

Described = Mapping[str, Any]  # a run's `run.json`


def header(rows: Sequence[RowData], experiment: Experiment, manifest: Manifest) -> list[str]:
    """All header lines of a table."""
    described = [run for row in rows for run in row.described]
    students = [run for run in described if run["role"] == "student"]
    costs = any(column.dataset == metrics.TRAINING for column in experiment.columns.values())
    last = students[-1] if students else described[-1] if described else None
    pairs = {run["model"] + _teacher(run): run for run in described if run["role"] == "student" and _teacher(run)}
    pairs = pairs or ({"": last} if last is not None else {})  # the last run of each pair and teacher stands for it
    return [
        *dict.fromkeys(line for run in pairs.values() for line in scale(run)),
        *(texts(rows) if experiment.needs_texts else []),
        *sets(manifest, last),
        *absent(experiment, manifest),
        *(not_the_papers(last, experiment, manifest) if last is not None else []),
        *partly(rows, manifest),
        *copies(rows),
        *(machines(rows) if costs else []),
        *manifest.notes,
    ]


def scale(run: Described) -> Iterator[str]:
    """The pair with its sizes, the data and the training, of one row that stands for all."""
    sizes = {}
    for name, stage in run["stages"].items():
        if name.startswith("base/") and "parameters" in stage:
            sizes["teacher" if "-teacher-" in name else "student"] = f"{stage['parameters'] / 1e6:.2f}M"
    config, data = run["config"], run["data"]
    model, train = config["model"], config["train"]
    parameters = f" ({sizes.get('teacher', '?')} -> {sizes.get('student', '?')} parameters)" if sizes else ""
    teacher, student = model["teacher"]["path"], model["student"]["path"]
    trained = f"teacher {'supplied (' + teacher + ')' if teacher else _epochs(train['teacher']['epochs'])}, student"
    trained += f" {_epochs(train['student']['epochs'])}" + (f" from {student}" if student else "")
    yield (
        f"Pair `{model['name']}`{parameters}, weights from {model['source']}, data `{config['data']['name']}`:"
        f" {data.get('train', {}).get('rows', '?')} training and {data.get('valid', {}).get('rows', '?')} validation"
        f" rows, {trained}, {train['precision']}, preset {config['preset']['name']}."
    )


def teachers(rows: Sequence[RowData]) -> list[str]:
    """The teachers that were trained or read for a table, by the names of their artifacts."""
    return sorted({name for row in rows for run in row.described if (name := _teacher(run))})


def _teacher(run: Described) -> str:
    """The artifact of a run's teacher; "" where it has none."""
    return next((name for name in run["stages"] if name.startswith("train/") and "-teacher-" in name), "")


def _epochs(count: int) -> str:
    return f"{count} epoch" + ("s" if count > 1 else "")


def texts(rows: Sequence[RowData]) -> list[str]:
    """How the rows' texts were written; row by row where that differs."""
    labels: dict[str, dict[str, None]] = {}  # by decoding, in order
    for row in rows:
        for decode, engine in row.lines[["decode", "engine"]].drop_duplicates().itertuples(index=False, name=None):
            labels.setdefault(f"{decode}, by {engine}", {})[row.label] = None
    if len(labels) < 2:
        return [f"Texts: {how}." for how in labels]
    return [f"Texts: {' | '.join(f'{how}: ' + ', '.join(of) for how, of in labels.items())}."]


def sets(manifest: Manifest, run: Described | None) -> Iterator[str]:
    """What was cut of the data sets, and which have other counts than the papers'."""
    training = {name: one for name, one in run["data"].items() if name in ("train", "valid")} if run else {}
    data = {**training, **manifest.sets}
    cuts = [f"{name} {one['note']}" for name, one in data.items() if one.get("note")]
    if cuts:
        yield f"Cut: {', '.join(cuts)} rows."
    if other := [f"{name} {one['counted']} ({one['papers']})" for name, one in data.items() if one.get("counted")]:
        yield f"Other numbers of rows than the papers' (in brackets): {', '.join(other)}."


def absent(experiment: Experiment, manifest: Manifest) -> Iterator[str]:
    """Columns that the pair's data does not have."""
    if titles := [t for t in absent_columns(experiment, manifest) if experiment.columns[t].average is None]:
        yield f"Empty columns: the data has no {' and no '.join(titles)}."


def is_smoke(rows: Sequence[RowData]) -> bool:
    """Whether a row ran with random weights on generated data (`debug=smoke`)."""
    return any(run["config"]["debug"]["smoke"] for row in rows for run in row.described)


def not_the_papers(run: Described, experiment: Experiment, manifest: Manifest) -> Iterator[str]:
    """That another pair than the paper's ran, or random weights."""
    if manifest.model != experiment.model:
        yield (
            f"This is not the paper's scale (its pair is `{experiment.model}`): the rows compare with each other, not"
            " with the paper's numbers."
        )
    if run["config"]["debug"]["smoke"]:
        yield "debug=smoke: random weights and generated data; the numbers mean nothing."


def partly(rows: Sequence[RowData], manifest: Manifest) -> Iterator[str]:
    """Rows that were measured over fewer seeds than the table says."""
    for row in rows:
        if not len(row.lines):
            continue
        trainings = {int(s) for s in row.lines["train_seed"]}
        generations = {int(s) for s in row.lines["seed"] if s}
        wanted = len(row.row.runs)
        for kind, asked, there in (
            ("generation", set(manifest.seeds) if generations else set(), generations),
            ("training", set(manifest.train_seeds) if wanted > 1 else set(), trainings),
        ):
            if asked - there:
                listed = ", ".join(map(str, sorted(there)))
                yield f"{row.label} is over {kind} seed{'s' * (len(there) > 1)} {listed} only."


def copies(rows: Sequence[RowData]) -> Iterator[str]:
    """Rows that were made over different copies of one stage, such as a teacher trained again.

    A stage's name holds the hash of all that determines it, but not the rounding of the machine that made it.
    """
    labels: dict[str, dict[str, dict[str, None]]] = {}  # of each copy of each stage, in order
    for row in rows:
        for run in row.described:
            for name, stage in run["stages"].items():
                copy = str(stage.get("weights") or (stage.get("seconds"), stage.get("commit")))
                labels.setdefault(name, {}).setdefault(copy, {})[row.label] = None
    for name, several in labels.items():
        if len(several) > 1:
            groups = " | ".join(map(", ".join, several.values()))
            yield f"Made over different copies of {name}, so not to be compared: {groups}."


def machines(rows: Sequence[RowData]) -> Iterator[str]:
    """On what and by which commit the rows were trained themselves; a cost is said of both."""
    labels: dict[str, dict[str, None]] = {}  # by machine and commit, in order
    for row in rows:
        for run in row.described:
            for name, stage in run["stages"].items():
                if name.startswith("train/") and f"-{run['role']}-" in name:
                    where = f"{_machine(stage['hardware'])} at {stage['commit']}"
                    labels.setdefault(where, {})[row.label] = None
    if len(labels) == 1:
        yield f"Trained on {next(iter(labels))}."
    elif labels:
        several = " | ".join(f"{', '.join(of)} on {where}" for where, of in labels.items())
        yield f"Trained on unlike machines or by unlike commits, so costs compare within one only: {several}."


def _machine(hardware: Mapping[str, Any]) -> str:
    """A manifest's hardware in words."""
    if accelerators := hardware["accelerators"]:
        return " + ".join(f"{accelerators.count(one)} x {one}" for one in dict.fromkeys(accelerators))
    threads = hardware.get("threads", "not noted")  # by earlier versions
    return f"{hardware['processor']} ({hardware['cores']} cores, torch's threads: {threads})"


def spread(manifest: Manifest, rows: Sequence[RowData]) -> str:
    """Which seed varied behind a spread; without generation seeds nothing was written."""
    trained = ", ".join(map(str, manifest.train_seeds))
    several = len(teachers(rows))
    shared = "one teacher, one student start" if several < 2 else f"{several} teachers, each with its student start"
    if not manifest.seeds:
        return f"Training seed{'s' if len(manifest.train_seeds) > 1 else ''} {trained}; {shared}."
    generation = f"generation seeds {', '.join(map(str, manifest.seeds))}"
    if len(manifest.train_seeds) == 1:
        over = f"{generation}; one training (seed {trained})"
    else:
        over = f"student training seeds {trained}, each the mean over {generation} (of a row with one training, such as"
        over += " the Teacher, over generation seeds)"
    return f"Mean (sample standard deviation) over {over}; {shared}."
