"""The table of a sweep, written when its last job ends (a Hydra callback)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepTable(Callback):
    """Collects what the jobs of a sweep measured, wherever the launcher ran them."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the sweep's table and write its CSV beside the long file."""
        from distill.console import say
        from distill.tables.report import show
        from distill.tables.shape import Column, table

        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("*/rows.csv"))
        if not files:
            return
        values = pd.concat([pd.read_csv(f, dtype={"run": str}) for f in files], ignore_index=True)
        values["row"] = _labels(values)
        measured = values[values["metric"] == "rouge_l"].drop_duplicates("dataset")
        columns = [Column(title, name) for title, name in zip(measured["column"], measured["dataset"], strict=True)]
        rows = [(str(label), lines) for label, lines in values.groupby("row", sort=False)]
        shaped = table(rows, columns)
        show(shaped, f"{config.model.name}, ROUGE-L: mean (sample standard deviation) over the sweep's seeds")
        target = Path(config.paths.results) / config.model.name / "runs" / f"sweep-{folder.name}.csv"
        shaped.to_csv(target, index=False, lineterminator="\n")
        say(f"table: {target}")


def _labels(values: pd.DataFrame) -> pd.Series:
    """Row labels; runs that share one (a sweep over something the label does not show) get their run hash."""
    runs = values.groupby(["row", "train_seed"])["run"].transform("nunique")
    return values["row"].where(runs == 1, values["row"] + " [" + values["run"] + "]")
