"""`python -m distill.store [list|prune] [--store DIR] [--results DIR] [--yes]`: artifacts, and those no run needs.

A run needs the artifacts that its `run.json` names. Its facts stay without them; pruning costs what it would take to go
on from there (another seed, another loss over the same teacher). What a command that is running now needs is left
alone, and so is whatever else lies in the store: logs, W&B's runs, links.
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

LOOSE = ("no run needs it", "unfinished")  # what prune removes


def needed(results: Path) -> set[str]:
    """Names of the artifacts that the runs under `results` list.

    Raises:
        UserError: a run's file is damaged, so that nothing tells what it needs.
    """
    names: set[str] = set()
    for path in results.rglob("run.json"):
        try:
            names.update(json.loads(path.read_text(encoding="utf-8"))["artifacts"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: does not tell which artifacts it needs ({error}); restore it from git") from None
    return names


def main(words: list[str]) -> int:
    """List or prune."""
    parser = argparse.ArgumentParser(prog="distill.store", description=__doc__)
    parser.add_argument("action", nargs="?", choices=["list", "prune"], default="list")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder of artifacts (paths.store)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results (paths.results)")
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    options = parser.parse_args(words)
    if not options.store.is_dir():
        raise UserError(f"{options.store}: no such store; nothing was made there yet (--store names another)")
    if not options.results.is_dir():
        raise UserError(
            f"{options.results}: no such results folder; without it nothing tells what a run needs (--results)"
        )
    store = Store(options.store)
    status = statuses(store, options.results)
    loose = [entry for entry, state in status.items() if state in LOOSE]
    table = Table("artifact", "size", "seconds", "commit", "status")
    for entry in status if options.action == "list" else loose:
        seconds, commit = (str(entry.manifest.get(k, "")) for k in ("seconds", "commit"))
        table.add_row(entry.name, decimal(entry.size), seconds, commit, status[entry])
    console.print(table)
    total, freed = sum(e.size for e in status), sum(e.size for e in loose)
    console.print(f"{len(status)} artifacts, {decimal(total)}; {decimal(freed)} of it needed by no run")
    if options.action == "prune" and loose:
        if not options.yes and not _confirmed(len(loose)):
            console.print("nothing removed (--yes prunes without asking)")
            return 0
        removed = prune(store, options.results)
        console.print(f"removed {len(removed)} artifacts, {decimal(sum(e.size for e in removed))}")
    return 0


def statuses(store: Store, results: Path) -> dict[Entry, str]:
    """What becomes of each artifact: in a run, in use now, being made, unfinished, needed by no run."""
    keep, used = needed(results), leased(store.root)
    return {entry: _status(store, entry, keep, used) for entry in store.entries(list(VERSIONS))}


def prune(store: Store, results: Path) -> list[Entry]:
    """Remove what no run needs and no running command uses.

    While it chooses and removes, a command that starts waits to say what it needs; what is needed is looked up here,
    so that runs that ended since the list was shown count.
    """
    with guard(store.root):
        removed = [entry for entry, state in statuses(store, results).items() if state in LOOSE]
        for entry in removed:
            remove(entry.folder)
    return removed


def _confirmed(count: int) -> bool:
    try:
        return input(f"remove these {count} artifacts? [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


def _status(store: Store, entry: Entry, keep: set[str], used: set[str]) -> str:
    if entry.folder.is_symlink():
        return "a link"
    if store.busy(entry):
        return "being made"
    name = entry.name.replace("/.partial-", "/")
    if name in used:
        return "in use"
    if not entry.finished:
        return "unfinished"
    return "in a run" if entry.name in keep else "no run needs it"


if __name__ == "__main__":
    raise SystemExit(command(main))
