"""A table's header lines: what ran, at which scale, and which of the rows are not to be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from distill.results import metrics
from distill.results.experiment import Experiment
from distill.results.manifest import Manifest
from distill.results.separation import separations
from distill.results.table import RowData, absent_columns, columns_of

RunDescription = Mapping[str, Any]  # the content of a run's `run.json`


def header(rows: Sequence[RowData], experiment: Experiment, manifest: Manifest) -> list[str]:
    """All header lines of a table."""
    runs = [run for row in rows for run in row.descriptions]
    students = [run for run in runs if run["role"] == "student"]
    has_costs = any(column.dataset == metrics.TRAINING for column in experiment.columns.values())
    last = students[-1] if students else runs[-1] if runs else None
    # Pair and teacher are described once each, by the last student run that has them
    runs_by_teacher = {run["model"] + _teacher(run): run for run in students if _teacher(run)}
    if not runs_by_teacher and last is not None:
        runs_by_teacher = {"": last}
    return [
        *dict.fromkeys(line for run in runs_by_teacher.values() for line in pair_lines(run)),
        *epochs_lines(rows),
        *(decoding_lines(rows) if experiment.needs_texts else []),
        *data_set_lines(manifest, last),
        *absent_column_lines(experiment, manifest),
        *(scale_warnings(last, experiment, manifest) if last is not None else []),
        *missing_seed_lines(rows, manifest),
        *(f"Failed: {label} ({reason})." for label, reason in manifest.failed.items()),
        *stage_copy_lines(rows),
        *missing_corpus_lines(rows),
        *separation_lines(rows, experiment, manifest),
        *(machine_lines(rows) if has_costs else []),
        *manifest.notes,
    ]


def pair_lines(run: RunDescription) -> Iterator[str]:
    """The pair with its sizes and its data, from the description of one of its runs."""
    sizes = {}
    for name, stage in run["stages"].items():
        if name.startswith("base/") and "parameters" in stage:
            sizes["teacher" if "-teacher-" in name else "student"] = f"{stage['parameters'] / 1e6:.2f}M"
    config, data = run["config"], run["data"]
    model = config["model"]
    parameters = f" ({sizes.get('teacher', '?')} -> {sizes.get('student', '?')} parameters)" if sizes else ""
    supplied = [f", {role} {path}" for role in ("teacher", "student") if (path := model[role]["path"])]
    yield (
        f"Pair `{model['name']}`{parameters}, weights from {model['source']}, data `{config['data']['name']}`:"
        f" {data.get('train', {}).get('rows', '?')} training and {data.get('valid', {}).get('rows', '?')} validation"
        f" rows{''.join(supplied)}, {config['train']['precision']}, preset {config['preset']['name']}."
    )


def epochs_lines(rows: Sequence[RowData]) -> Iterator[str]:
    """The epochs that each row's model was trained for. Those of a student's start come first: `3 + 20`."""
    labels: dict[str, dict[str, None]] = {}  # row labels by epochs, in the table's order
    for row in rows:
        for run in row.descriptions:
            labels.setdefault(_epochs(run), {})[row.label] = None
    if labels:
        groups = (f"{', '.join(row_labels)} {epochs}" for epochs, row_labels in labels.items())
        yield f"Epochs: {'; '.join(groups)}."


def _epochs(run: RunDescription) -> str:
    """The epochs of the trainings behind a run's model, such as `3 + 20`; `none` for a supplied checkpoint."""
    train, role = run["config"]["train"], run["role"]
    if role == "teacher":
        return str(train["teacher"]["epochs"]) if _teacher(run) else "none"
    has_start = any(name.startswith("train/") and "-start-" in name for name in run["stages"])
    stage = run.get("schedule", "student")  # earlier versions did not record it and had one for all students
    return f"{train['start']['epochs']} + " * has_start + str(train[stage]["epochs"])


def teacher_artifacts(rows: Sequence[RowData]) -> list[str]:
    """The artifact names of all teachers behind a table's rows, sorted."""
    return sorted({name for row in rows for run in row.descriptions if (name := _teacher(run))})


def _teacher(run: RunDescription) -> str:
    """The artifact name of a run's teacher; "" if the run has no teacher."""
    return next((name for name in run["stages"] if name.startswith("train/") and "-teacher-" in name), "")


def decoding_lines(rows: Sequence[RowData]) -> list[str]:
    """Decoding and engine of the rows' responses; with the rows' labels if these differ."""
    labels: dict[str, dict[str, None]] = {}  # row labels by decoding and engine, in the table's order
    for row in rows:
        for decode, engine in row.lines[["decode", "engine"]].drop_duplicates().itertuples(index=False, name=None):
            labels.setdefault(f"{decode}, by {engine}", {})[row.label] = None
    if len(labels) < 2:
        return [f"Texts: {decoding}." for decoding in labels]
    groups = (f"{decoding}: {', '.join(row_labels)}" for decoding, row_labels in labels.items())
    return [f"Texts: {' | '.join(groups)}."]


def data_set_lines(manifest: Manifest, run: RunDescription | None) -> Iterator[str]:
    """The data sets that are used in part, and those with another number of rows than the papers give."""
    training_sets = {name: data for name, data in run["data"].items() if name in ("train", "valid")} if run else {}
    data_sets = {**training_sets, **manifest.sets}
    subsets = [f"{name} {data['note']}" for name, data in data_sets.items() if data.get("note")]
    if subsets:
        yield f"Cut: {', '.join(subsets)} rows."
    other_counts = [
        f"{name} {data['counted']} ({data['papers']})" for name, data in data_sets.items() if data.get("counted")
    ]
    if other_counts:
        yield f"Other numbers of rows than the papers' (in brackets): {', '.join(other_counts)}."


def absent_column_lines(experiment: Experiment, manifest: Manifest) -> Iterator[str]:
    """The columns whose data set is not part of the pair's data."""
    if titles := [t for t in absent_columns(experiment, manifest) if experiment.columns[t].average is None]:
        yield f"Empty columns: the data has no {' and no '.join(titles)}."


def is_smoke(rows: Sequence[RowData]) -> bool:
    """Whether a row ran with random weights on generated data (`debug=smoke`)."""
    return any(run["config"]["debug"]["smoke"] for row in rows for run in row.descriptions)


def compares_with_paper(rows: Sequence[RowData], experiment: Experiment, manifest: Manifest) -> bool:
    """Whether a difference to the paper's number means something: its own pair, scored as it scores, and no smoke."""
    return experiment.is_papers_pair(manifest.model) and manifest.rouge_tokenizer is None and not is_smoke(rows)


def scale_warnings(run: RunDescription, experiment: Experiment, manifest: Manifest) -> Iterator[str]:
    """Warnings where the numbers do not compare with the paper's: another pair ran, or random weights."""
    if manifest.rouge_tokenizer is not None:
        yield (
            f"ROUGE-L counts {manifest.rouge_tokenizer} (eval.rouge_tokenizer), not the papers' English words: its"
            " scores do not compare with those that they print."
        )
    if not experiment.is_papers_pair(manifest.model):
        yield (
            f"This is not the paper's scale (its pair is `{experiment.model}`): the rows compare with each other, not"
            " with the paper's numbers."
        )
    if run["config"]["debug"]["smoke"]:
        yield "debug=smoke: random weights and generated data; the numbers mean nothing."


def missing_seed_lines(rows: Sequence[RowData], manifest: Manifest) -> Iterator[str]:
    """The rows that were measured over fewer seeds than the manifest lists."""
    for row in rows:
        if not len(row.lines):
            continue
        training_seeds = {int(s) for s in row.lines["train_seed"]}
        generation_seeds = {int(s) for s in row.lines["seed"] if s}
        for kind, expected, measured in (
            ("generation", set(manifest.seeds) if generation_seeds else set(), generation_seeds),
            ("training", set(manifest.train_seeds) if len(row.row.runs) > 1 else set(), training_seeds),
        ):
            if expected - measured:
                listed = ", ".join(map(str, sorted(measured)))
                yield f"{row.label} is over {kind} seed{'s' * (len(measured) > 1)} {listed} only."


def missing_corpus_lines(rows: Sequence[RowData]) -> Iterator[str]:
    """The rows whose recipe has a corpus term and that were trained without it (`data.pretrain=off`)."""
    labels = [
        row.label
        for row in rows
        for run in row.descriptions[:1]
        if run["config"]["data"].get("pretrain") == "off" and run["config"]["loss"].get("w_lm")
    ]
    if labels:
        yield f"No corpus (data.pretrain=off): {', '.join(labels)} trained without the corpus term of their recipe."


def separation_lines(rows: Sequence[RowData], experiment: Experiment, manifest: Manifest) -> Iterator[str]:
    """The columns that hardly tell rows apart: see `distill.results.separation`."""
    of_columns = separations(rows, columns_of(experiment, manifest))
    if failing := [f"{s.column} ({', '.join(s.fails)})" for s in of_columns if s.fails]:
        yield f"Columns where noise may hide the differences: {'; '.join(failing)}."


def stage_copy_lines(rows: Sequence[RowData]) -> Iterator[str]:
    """The rows that used different copies of the same stage, such as a teacher that was trained twice."""
    labels: dict[str, dict[str, list[str]]] = {}  # row labels by stage name and copy, in the table's order
    for row in rows:
        for name, copies in row.copies.items():
            for copy in sorted(copies):  # a set's own order differs from process to process
                labels.setdefault(name, {}).setdefault(copy, []).append(row.label)
    for name, labels_by_copy in labels.items():
        if len(labels_by_copy) > 1:
            groups = " | ".join(map(", ".join, labels_by_copy.values()))
            yield f"Made over different copies of {name}, so not compared: {groups}."


def machine_lines(rows: Sequence[RowData]) -> Iterator[str]:
    """The machine and the commit that the rows' models were trained with: costs depend on both."""
    labels: dict[str, dict[str, None]] = {}  # row labels by machine and commit, in the table's order
    for row in rows:
        for run in row.descriptions:
            for name, stage in run["stages"].items():
                if name.startswith("train/") and f"-{run['role']}-" in name:
                    machine = f"{_machine(stage['hardware'])} at {stage['commit']}"
                    labels.setdefault(machine, {})[row.label] = None
    if len(labels) == 1:
        yield f"Trained on {next(iter(labels))}."
    elif labels:
        groups = " | ".join(f"{', '.join(row_labels)} on {machine}" for machine, row_labels in labels.items())
        yield f"Trained on unlike machines or by unlike commits, so costs compare within one only: {groups}."


def _machine(hardware: Mapping[str, Any]) -> str:
    """The hardware entry of an artifact's manifest, in words."""
    if accelerators := hardware["accelerators"]:
        return " + ".join(f"{accelerators.count(name)} x {name}" for name in dict.fromkeys(accelerators))
    threads = hardware.get("threads", "not noted")  # earlier versions did not record the threads
    return f"{hardware['processor']} ({hardware['cores']} cores, torch's threads: {threads})"


def seeds_line(manifest: Manifest, rows: Sequence[RowData]) -> str:
    """The seeds that means and standard deviations are over, and how many teachers the rows share.

    Costs have no generation seeds, and some measurements only the first.
    """
    training_seeds = ", ".join(map(str, manifest.train_seeds))
    teachers = len(teacher_artifacts(rows))
    shared = "one teacher, one student start" if teachers < 2 else f"{teachers} teachers, each with its student start"
    if any(stage_copy_lines(rows)):
        shared += ", in the copies above"
    titles = {(part[0], part[1]) for part in manifest.columns.values() if part is not None}
    generation_seeds = sorted({seed for row in rows for seed in _seeds(row.lines, titles)})
    if not generation_seeds:
        return f"Training seed{'s' if len(manifest.train_seeds) > 1 else ''} {training_seeds}; {shared}."
    generation = f"generation seed{'s' * (len(generation_seeds) > 1)} {', '.join(map(str, generation_seeds))}"
    if len(manifest.train_seeds) == len(generation_seeds) == 1:
        return f"One number a row: {generation}, training seed {training_seeds}; {shared}."
    if len(manifest.train_seeds) == 1:
        seeds = f"{generation}; one training (seed {training_seeds})"
    else:
        seeds = f"student training seeds {training_seeds}, each the mean over {generation} (of a row with one training,"
        seeds += " such as the Teacher, over generation seeds)"
    return f"Mean (sample standard deviation) over {seeds}; {shared}."


def _seeds(lines: pd.DataFrame, columns: set[tuple[str, str]]) -> set[int]:
    """The generation seeds of a row's numbers in some columns."""
    pairs = zip(lines["dataset"], lines["metric"], strict=True) if len(lines) else ()
    of_columns = [pair in columns for pair in pairs]
    return {int(seed) for seed in lines["seed"][of_columns] if seed} if any(of_columns) else set()
