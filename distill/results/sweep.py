"""The table of a sweep, written when its last job ends (a Hydra callback)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from distill.base.errors import FAILED, UserError, report, without_folders
from distill.base.files import write_whole
from distill.base.processes import is_main_process
from distill.results.metrics import ROUGE_NAMES
from distill.results.runs import LONG_COLUMNS, RUNS, RunFolder, long_lines, unique_labels
from distill.results.statistics import Column, cell
from distill.results.table import FAILED_CELL

FAILURE = "failed.csv"  # why a job failed, in the job's folder
ROWS = "rows.csv"  # the measured lines of a job, in the job's folder; the sweep's table is made from them


def job_lines(
    folder: RunFolder, label: str, titles: Mapping[str, str], hashes: Mapping[str, str], seeds: Sequence[int]
) -> pd.DataFrame:
    """A run's lines of a long file, of these data sets and generation seeds only.

    Args:
        folder: the run.
        label: the row's label.
        titles: the data sets' titles by name.
        hashes: the data sets' hashes by name.
        seeds: the generation seeds.
    """
    lines = long_lines(folder, RUNS, label, titles)
    expected_hashes = lines["dataset"].map(dict(hashes))
    selected = (expected_hashes == lines["data"]) & lines["seed"].isin({"", *map(str, seeds)})
    return lines[selected][LONG_COLUMNS]


def note_failure(
    folder: Path, label: str, model: str, results: str, problems: Sequence[str], words: Sequence[str]
) -> None:
    """Leave in a job's folder that it failed, for the table of its sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    reason = without_folders(problems)
    line = {"row": label, "model": model, "results": results, "problem": reason, "overrides": " ".join(words)}
    pd.DataFrame([line]).to_csv(folder / FAILURE, index=False)


def rouge_table(lines: pd.DataFrame) -> pd.DataFrame:
    """A table of ROUGE-L: one line a row label, one column a data set, and cells as text."""
    measured = lines[lines["metric"].isin(ROUGE_NAMES)].drop_duplicates(["dataset", "metric"])
    columns = [
        Column(title, ((name, metric),))
        for title, name, metric in measured[["column", "dataset", "metric"]].itertuples(index=False, name=None)
    ]
    data = []
    for label, row_lines in lines.groupby("row", sort=False):
        cells = {column.title: cell(row_lines, column) for column in columns}
        data.append({"row": str(label), **{t: "" if c is None else str(c) for t, c in cells.items()}})
    return pd.DataFrame(data, columns=["row", *(column.title for column in columns)])


def with_failures(frame: pd.DataFrame, failures: pd.DataFrame) -> pd.DataFrame:
    """A table with a line for each job that failed: `failed` in every cell, and the reason in a column of its own."""
    if failures.empty:
        return frame
    titles = list(frame.columns[1:]) or ["result"]
    words = [set(text.split()) for text in failures["overrides"]]
    common = set.intersection(*words) if len(words) > 1 else set()
    lines = []
    for row, problem, text in failures[["row", "problem", "overrides"]].itertuples(index=False, name=None):
        own = " ".join(word for word in text.split() if word not in common) if common else ""
        label = f"{row} [{own}]" if own else row
        lines.append({"row": label, **dict.fromkeys(titles, FAILED_CELL), "reason": problem})
    return pd.concat([frame, pd.DataFrame(lines)], ignore_index=True).fillna("")


class SweepTable(Callback):
    """Writes the table of a sweep from the files that its jobs left in their folders."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print one table for each pair of the sweep, and write its CSV into the pair's `runs` folder."""
        if not is_main_process():  # all processes of a launcher share the folder
            return
        folder = Path(config.hydra.sweep.dir)
        values, failures = (_of_jobs(folder, name) for name in (ROWS, FAILURE))
        pairs = [frame[["results", "model"]] for frame in (values, failures) if not frame.empty]
        if not pairs:
            return
        for results, model in pd.concat(pairs).drop_duplicates().itertuples(index=False, name=None):
            measured, failed = (
                frame if frame.empty else frame[(frame["results"] == results) & (frame["model"] == model)]
                for frame in (values, failures)
            )
            try:
                _write(
                    measured, failed, str(model), Path(str(results)) / str(model) / RUNS / f"sweep-{folder.name}.csv"
                )
            except (OSError, UserError) as error:  # Hydra would only log a warning
                FAILED.append(UserError(f"the table of {model} could not be written: {error}"))
                report(FAILED[-1])


def _of_jobs(folder: Path, name: str) -> pd.DataFrame:
    """The lines of the files of this name in the folders of a sweep's jobs, in the jobs' order."""
    files = sorted(folder.glob(f"*/{name}"), key=lambda file: int(file.parent.name.split("-")[0]))
    frames = [pd.read_csv(file, dtype=str, keep_default_na=False) for file in files]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _write(values: pd.DataFrame, failures: pd.DataFrame, model: str, target: Path) -> None:
    from distill.base.console import say
    from distill.results.terminal import show

    engines = [] if values.empty else sorted(set(values["engine"]))
    if len(engines) > 1:
        raise UserError(
            f"the sweep's responses were generated by {' and '.join(engines)}; a table has one engine, so no table was"
            " written. Set eval.engine to one of them"
        )
    table = pd.DataFrame(columns=["row"]) if values.empty else rouge_table(values.assign(row=_labels(values)))
    frame = with_failures(table, failures)
    show(frame, f"{model}, ROUGE-L: mean (sample standard deviation) over the sweep's seeds")
    for line in _keys_of_labels(values):
        say(line)
    write_whole(target, frame.to_csv(index=False, lineterminator="\n"))
    say(f"table: {target}")


def _keys_of_labels(values: pd.DataFrame) -> list[str]:
    """For runs that share a label, and have their run's name behind it, the overrides that tell them apart."""
    if values.empty:
        return []
    runs = values.assign(label=_labels(values)).drop_duplicates("run")
    words = {run: set(str(text).split()) for run, text in zip(runs["run"], runs["overrides"], strict=True)}
    common = set.intersection(*words.values())
    return [
        f"{label}: {' '.join(word for word in str(text).split() if word not in common)}"
        for run, label, text in runs[["run", "label", "overrides"]].itertuples(index=False, name=None)
        if str(run) in str(label)
    ]


def _labels(values: pd.DataFrame) -> pd.Series:
    """The row label of each line, with the run's name where two runs share a label (`unique_labels`)."""
    runs = values.drop_duplicates("run").set_index("run")
    by_run = {name: {str(run): str(value) for run, value in runs[name].items()} for name in ("row", "train_seed")}
    labels = unique_labels(by_run["row"], by_run["train_seed"])
    return values["run"].map(labels)
