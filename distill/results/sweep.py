"""The table of a sweep, written when its last job ends (a Hydra callback)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from distill.base.errors import FAILED, UserError, report
from distill.base.processes import is_main_process


class SweepTable(Callback):
    """Collects what the jobs of a sweep measured, wherever the launcher ran them."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the sweep's table, one for each model, and write its CSV beside the long file."""
        if not is_main_process():  # all processes of a launcher have one folder
            return
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("*/rows.csv"), key=lambda f: int(f.parent.name.split("-")[0]))
        if not files:
            return
        values = pd.concat([pd.read_csv(f, dtype={"run": str}) for f in files], ignore_index=True)
        for (results, model), lines in values.groupby(["results", "model"], sort=False):
            try:
                _write(lines, str(model), Path(str(results)) / str(model) / "runs" / f"sweep-{folder.name}.csv")
            except (OSError, UserError) as error:  # Hydra would only warn
                FAILED.append(UserError(f"the table of {model} could not be written: {error}"))
                report(FAILED[-1])


def _write(values: pd.DataFrame, model: str, target: Path) -> None:
    from distill.base.console import say
    from distill.results.report import show
    from distill.results.shape import Column, table

    engines = sorted(set(values["engine"]))
    if len(engines) > 1:
        raise UserError(f"the sweep's rows are by {' and '.join(engines)}; a table has one engine, so none was written")
    values = values.assign(row=_labels(values))
    measured = values[values["metric"] == "rouge_l"].drop_duplicates("dataset")
    columns = [Column(title, name) for title, name in zip(measured["column"], measured["dataset"], strict=True)]
    shaped = table([(str(label), lines) for label, lines in values.groupby("row", sort=False)], columns)
    show(shaped, f"{model}, ROUGE-L: mean (sample standard deviation) over the sweep's seeds")
    shaped.to_csv(target, index=False, lineterminator="\n")
    say(f"table: {target}")


def _labels(values: pd.DataFrame) -> pd.Series:
    """Row labels; runs that share one (a sweep over something the label does not show) get their run hash."""
    runs = values.groupby(["row", "train_seed"])["run"].transform("nunique")
    return values["row"].where(runs == 1, values["row"] + " [" + values["run"] + "]")
