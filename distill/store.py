"""`python -m distill.store [list|prune] [--store DIR] [--results DIR] [--yes]`: artifacts, and those no table needs.

A table needs the artifacts that its manifest names. A row's values stay without them; pruning costs what it would take
to go on from there (another seed, another loss over the same teacher).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table

from distill.base.console import console
from distill.base.errors import UserError, command
from distill.pipeline.store import Entry, Store


def needed(results: Path) -> set[str]:
    """Names of the artifacts that the manifests under `results` list."""
    names: set[str] = set()
    for path in results.rglob("*.manifest.json"):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"].values():
            names.update(row["artifacts"])
    return names


def main(words: list[str]) -> int:
    """List or prune."""
    parser = argparse.ArgumentParser(prog="distill.store", description=__doc__)
    parser.add_argument("action", nargs="?", choices=["list", "prune"], default="list")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder of artifacts (paths.store)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of tables (paths.results)")
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    options = parser.parse_args(words)
    if not options.store.is_dir():
        raise UserError(f"{options.store}: no such store; nothing was made there yet (--store names another)")
    if not options.results.is_dir():
        raise UserError(
            f"{options.results}: no such results folder; without it nothing tells what a table needs (--results)"
        )
    store, keep = Store(options.store), needed(options.results)
    entries = list(store.entries())
    status = {e.name: _status(store, e, keep) for e in entries}
    loose = [e for e in entries if status[e.name] in ("no table needs it", "unfinished")]
    shown = entries if options.action == "list" else loose
    table = Table("artifact", "size", "seconds", "commit", "status")
    for entry in shown:
        seconds, commit = (str(entry.manifest.get(k, "")) for k in ("seconds", "commit"))
        table.add_row(entry.name, decimal(entry.size), seconds, commit, status[entry.name])
    console.print(table)
    total, freed = sum(e.size for e in entries), sum(e.size for e in loose)
    console.print(f"{len(entries)} artifacts, {decimal(total)}; {decimal(freed)} of it needed by no table")
    if options.action == "prune" and loose:
        if not options.yes and not _confirmed(len(loose)):
            console.print("nothing removed (--yes prunes without asking)")
            return 0
        for entry in loose:
            shutil.rmtree(entry.folder)
        console.print(f"removed {len(loose)} artifacts, {decimal(freed)}")
    return 0


def _confirmed(count: int) -> bool:
    try:
        return input(f"remove these {count} artifacts? [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


def _status(store: Store, entry: Entry, keep: set[str]) -> str:
    if store.busy(entry):
        return "being made"
    if not entry.finished:
        return "unfinished"
    return "in a table" if entry.name in keep else "no table needs it"


if __name__ == "__main__":
    raise SystemExit(command(main))
