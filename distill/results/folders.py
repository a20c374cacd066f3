"""Whether the folders that a command writes to can be written to, and hold what this version reads."""

from __future__ import annotations

import os
from pathlib import Path

from distill.base.errors import UserError
from distill.config.schema import Config

RUNS = "runs"
LAST_OLD_COMMIT = "4c01ae4"  # the last that reads results with a file a table in place of a folder a run


def check_folders(config: Config) -> None:
    """Refuse folders that nothing can be written to, making none, and results of an older form.

    Raises:
        UserError: naming them.
    """
    problems = []
    for key, folder in (("paths.store", config.paths.store), ("paths.results", config.paths.results)):
        place = Path(folder).absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK):
            problems.append(f"{key}={folder}: {place} is no folder that can be written to; choose another")
    if problems:
        raise UserError(problems)
    refuse_old_results(config.paths.results, config.model.name)


def refuse_old_results(results: str | Path, model: str) -> None:
    """Refuse a results folder of the form before there were runs.

    Raises:
        UserError: with the commit that could read it.
    """
    root = Path(results)
    old = sorted((root / model).glob("*/*_scores.csv")) + sorted((root / model / RUNS).glob("runs.manifest.json"))
    if old:
        raise UserError(
            f"{old[0]}: these results are of an older form, a file a table in place of a folder a run; commit"
            f" {LAST_OLD_COMMIT} of this project reads them. Move {root / model} away, or set paths.results to another"
            " folder"
        )
