"""Checks that a command can write to its folders and that this version can read the results in them."""

from __future__ import annotations

import os
from pathlib import Path

from distill.base.errors import UserError
from distill.config.schema import Config

RUNS = "runs"
LAST_OLD_COMMIT = "4c01ae4"  # the last commit that reads results with one file a table


def check_folders(config: Config) -> None:
    """Check that the store and the results folder can be written to, without creating them.

    Raises:
        UserError: a folder cannot be written to, or the results have an older form or are damaged. Unwritable
            folders are named together.
    """
    problems = []
    results = Path(config.paths.results) / config.model.name / RUNS
    for key, folder in (("paths.store", Path(config.paths.store)), ("paths.results", results)):
        existing = folder.absolute()
        while not os.path.lexists(existing):  # a link to nothing is there, too
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            given = config.paths.store if key == "paths.store" else config.paths.results
            problems.append(f"{key}={given}: {existing} is not a folder that can be written to; choose another folder")
    if problems:
        raise UserError(problems)
    refuse_old_results(config.paths.results, config.model.name)
    refuse_cut_files(config.paths.results, config.model.name)


def refuse_cut_files(results: str | Path, model: str) -> None:
    """Refuse runs of a pair whose files are empty or cut off, as a crash leaves them, before more is measured.

    Raises:
        UserError: with these files.
    """
    runs = Path(results) / model / RUNS
    cut = [file for name in ("facts.csv", "run.json") for file in sorted(runs.glob(f"*/{name}")) if not _is_whole(file)]
    if cut:
        raise UserError(
            [
                f"{file} is damaged: it is empty or cut off; restore it from git, or remove {file.parent} to measure"
                " again"
                for file in cut
            ]
        )


def _is_whole(file: Path) -> bool:
    """Whether a result file ends as all of them do, with a line feed."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - 1))
        return opened.read() == b"\n"


def refuse_old_results(results: str | Path, model: str = "*") -> None:
    """Refuse results that a version without run folders wrote.

    Args:
        results: the results folder.
        model: the pair whose results are read; `*` for all pairs.

    Raises:
        UserError: the results are of that form. The message names the commit that reads them.
    """
    root = Path(results)
    old = [*sorted(root.glob(f"{model}/*/*_scores.csv")), *sorted(root.glob(f"{model}/{RUNS}/runs.manifest.json"))]
    if old:
        raise UserError(
            f"{old[0]}: these results have an older form, with one file for each table in place of one folder for each"
            f" run; commit {LAST_OLD_COMMIT} of this project reads them. Move {old[0].parents[1]} away, or use another"
            " results folder"
        )
