"""`python -m distill.store [list|prune] [--store DIR] [--results DIR] [--yes]`: lists and removes artifacts.

A run needs the artifacts that its `run.json` lists. `prune` removes those that no run needs. Results do not change, but
commands that would have reused an artifact (another seed, another loss with the same teacher) must make it again.
Artifacts that a running command needs are not removed, nor are other files in the store: logs, W&B's runs, links.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table

from distill.base.console import console
from distill.base.errors import UserError, command
from distill.pipeline.keys import VERSIONS
from distill.pipeline.leases import guard, leased
from distill.pipeline.store import Entry, Store, remove
from distill.results.folders import refuse_old_results

PRUNABLE = ("no run needs it", "unfinished")  # statuses of the artifacts that prune removes


def needed(results: Path) -> set[str]:
    """Names of the artifacts that the runs under `results` list.

    Raises:
        UserError: a run.json is damaged, or results have an older form, whose artifacts are not known.
    """
    refuse_old_results(results)
    names: set[str] = set()
    lost = [facts for facts in sorted(results.rglob("facts.csv")) if not facts.with_name("run.json").is_file()]
    if lost:
        raise UserError(
            [f"{x.parent}: run.json is missing, which lists the artifacts that the run needs; restore it from git, or"
             " remove the folder" for x in lost]
        )  # fmt: skip
    for path in results.rglob("run.json"):
        try:
            names.update(json.loads(path.read_text(encoding="utf-8"))["artifacts"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: it does not list the artifacts that the run needs ({error}); restore it from git"
            ) from None
    return names


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def main(words: list[str]) -> int:
    """List or prune the artifacts; see the module."""
    parser = argparse.ArgumentParser(prog="distill.store", description=__doc__)
    parser.add_argument("action", nargs="?", choices=["list", "prune"], default="list")
    parser.add_argument("--store", type=_folder, default=Path("store"), help="folder of artifacts (paths.store)")
    parser.add_argument("--results", type=_folder, default=Path("results"), help="folder of results (paths.results)")
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    options = parser.parse_args(words)
    if not options.store.is_dir():
        raise UserError(f"{options.store}: there is no such store; give the folder of the artifacts with --store DIR")
    if not options.results.is_dir():
        raise UserError(
            f"{options.results}: there is no such results folder, and without it the needed artifacts are unknown; give"
            " it with --results DIR"
        )
    store = Store(options.store)
    status_of = statuses(store, options.results)
    prunable = [entry for entry, status in status_of.items() if status in PRUNABLE]
    table = Table("artifact", "size", "seconds", "commit", "status")
    for entry in status_of if options.action == "list" else prunable:
        seconds, commit = (str(entry.manifest.get(k, "")) for k in ("seconds", "commit"))
        table.add_row(entry.name, decimal(entry.size), seconds, commit, status_of[entry])
    console.print(table)
    total, freed = sum(e.size for e in status_of), sum(e.size for e in prunable)
    console.print(f"{len(status_of)} artifacts, {decimal(total)}; no run needs {decimal(freed)} of it")
    if options.action == "prune" and prunable:
        if not options.yes and not _confirmed(len(prunable)):
            console.print("nothing was removed; to prune without being asked, add --yes")
            return 0
        removed = prune(store, options.results)
        console.print(f"removed {len(removed)} artifacts, {decimal(sum(e.size for e in removed))}")
    return 0


def statuses(store: Store, results: Path) -> dict[Entry, str]:
    """The status of each artifact: a link, being made, in use, unfinished, in a run, or no run needs it."""
    in_runs, in_use = needed(results), leased(store.root)
    return {entry: _status(store, entry, in_runs, in_use) for entry in store.entries(list(VERSIONS))}


def prune(store: Store, results: Path) -> list[Entry]:
    """Remove the artifacts that no run needs and no running command uses; return them.

    The statuses are computed again, since runs may have ended after the list was printed. The lock makes a command that
    starts meanwhile wait before it declares which artifacts it needs.
    """
    with guard(store.root):
        removed = [entry for entry, status in statuses(store, results).items() if status in PRUNABLE]
        for entry in removed:
            remove(entry.folder)
    return removed


def _confirmed(count: int) -> bool:
    try:
        return input(f"remove these {count} artifacts? [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


def _status(store: Store, entry: Entry, in_runs: set[str], in_use: set[str]) -> str:
    if entry.folder.is_symlink():
        return "a link"
    if store.busy(entry):
        return "being made"
    name = entry.name.replace("/.partial-", "/")
    if name in in_use:
        return "in use"
    if not entry.finished:
        return "unfinished"
    return "in a run" if entry.name in in_runs else "no run needs it"


if __name__ == "__main__":
    raise SystemExit(command(main))
