"""The table of a sweep, written when its last job ends (a Hydra callback)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from distill.base.errors import FAILED, UserError, report
from distill.base.files import write_whole
from distill.base.processes import is_main_process
from distill.results.runs import LONG, RUNS, RunFolder, lines_of, unlike_labels
from distill.results.statistics import Column, cell

ROWS = "rows.csv"  # what a job measured, in its own folder, for the table at the end of a sweep


def job_lines(
    folder: RunFolder, label: str, titles: Mapping[str, str], hashes: Mapping[str, str], seeds: Sequence[int]
) -> pd.DataFrame:
    """A run's lines over these sets and generation seeds.

    Args:
        titles, hashes: of each set by its name.
    """
    lines = lines_of(folder, RUNS, label, titles)
    of_set = lines["dataset"].map(dict(hashes))
    counts = (of_set == lines["data"]) & lines["seed"].isin({"", *map(str, seeds)})
    return lines[counts][LONG]


def rouge_table(lines: pd.DataFrame) -> pd.DataFrame:
    """ROUGE-L by row and set, as cells."""
    measured = lines[lines["metric"] == "rouge_l"].drop_duplicates("dataset")
    columns = [
        Column(title, ((name, "rouge_l"),)) for title, name in zip(measured["column"], measured["dataset"], strict=True)
    ]
    data = []
    for label, own in lines.groupby("row", sort=False):
        cells = {column.title: cell(own, column) for column in columns}
        data.append({"row": str(label), **{t: "" if c is None else str(c) for t, c in cells.items()}})
    return pd.DataFrame(data, columns=["row", *(column.title for column in columns)])


class SweepTable(Callback):
    """Collects what the jobs of a sweep measured, wherever the launcher ran them."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the sweep's table, one for each model, and write its CSV beside the runs."""
        if not is_main_process():  # all processes of a launcher have one folder
            return
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob(f"*/{ROWS}"), key=lambda f: int(f.parent.name.split("-")[0]))
        if not files:
            return
        values = pd.concat([pd.read_csv(f, dtype=str, keep_default_na=False) for f in files], ignore_index=True)
        for (results, model), lines in values.groupby(["results", "model"], sort=False):
            try:
                _write(lines, str(model), Path(str(results)) / str(model) / RUNS / f"sweep-{folder.name}.csv")
            except (OSError, UserError) as error:  # Hydra would only warn
                FAILED.append(UserError(f"the table of {model} could not be written: {error}"))
                report(FAILED[-1])


def _write(values: pd.DataFrame, model: str, target: Path) -> None:
    from distill.base.console import say
    from distill.results.terminal import show

    engines = sorted(set(values["engine"]))
    if len(engines) > 1:
        raise UserError(f"the sweep's rows are by {' and '.join(engines)}; a table has one engine, so none was written")
    frame = rouge_table(values.assign(row=_labels(values)))
    show(frame, f"{model}, ROUGE-L: mean (sample standard deviation) over the sweep's seeds")
    write_whole(target, frame.to_csv(index=False, lineterminator="\n"))
    say(f"table: {target}")


def _labels(values: pd.DataFrame) -> pd.Series:
    """Row labels; runs that share one (a sweep over something the label does not show) get their run's name."""
    runs = values.drop_duplicates("run").set_index("run")
    by_run = {name: {str(run): str(value) for run, value in runs[name].items()} for name in ("row", "train_seed")}
    labels = unlike_labels(by_run["row"], by_run["train_seed"])
    return values["run"].map(labels)
