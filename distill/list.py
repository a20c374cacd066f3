"""`python -m distill.list [losses|samplers|methods|models|datasets|tables]`: what there is, one line each.

`--config-dir DIR` adds a folder of your own configs and tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from rich.markup import escape
from rich.table import Table

from distill.base import locations
from distill.base.console import console
from distill.base.errors import UserError, command, nearest

Lines = Iterator[tuple[str, ...]]


def _comment(path: Path) -> str:
    """The first comment of a config file."""
    text = path.read_text(encoding="utf-8").replace("# @package _global_", "")
    found = re.search(r"#\s*(.+)", text)
    return found.group(1).strip() if found else ""


def _comments(group: str) -> Lines:
    """Options of a config group with the first comment of their file."""
    for name, path in locations.options(group).items():
        yield name, _comment(path)


def losses() -> Lines:
    """Losses, with their equations and where those come from; options of `--config-dir` with their first comment."""
    from distill.losses import describe, names

    yield "sft", "Cross-entropy on the data alone; no teacher.", "-log q(response token)"
    known = names()
    for name in known:
        line, formula, source = describe(name)
        yield name, line, f"{formula}  [{source}]"
    for name, path in locations.options("loss").items():
        if name not in ("sft", *known):
            yield name, _comment(path), str(path)


def methods() -> Lines:
    """Methods with what they bundle."""
    for name, path in locations.options("method").items():
        bundle = re.findall(r"override /(\w+): (\w+)", path.read_text(encoding="utf-8"))
        if bundle:
            yield name, ", ".join(f"{group}={option}" for group, option in bundle)


def tables() -> Lines:
    """Tables with their targets. A file that breaks the schema is named when the table is built."""
    for name, path in locations.tables().items():
        own = path.is_relative_to(locations.EXPERIMENTS)
        try:
            told = yaml.safe_load(path.read_text(encoding="utf-8"))
            title, model = str(told["title"]), str(told["model"])
        except (yaml.YAMLError, KeyError, TypeError):
            title, model = f"{path} is not a table: title or model is missing", "MODEL"
        target = f"make {name.replace('/', '-').replace('_', '-')} MODEL={model}"
        yield name, title, target if own else f"python -m distill.table {name} --config-dir {path.parents[2]}"


KINDS: dict[str, Callable[[], Lines]] = {
    "losses": losses,
    "samplers": lambda: _comments("sampler"),
    "methods": methods,
    "models": lambda: _comments("model"),
    "datasets": lambda: _comments("data"),
    "tables": tables,
}


def main(words: list[str]) -> int:
    """Print one kind, or all."""
    words = locations.take_config_dir(words)
    unknown = [w for w in words if w not in KINDS]
    if unknown:
        raise UserError([f"{w}: nothing of that kind{nearest(w, KINDS)} (kinds: {', '.join(KINDS)})" for w in unknown])
    for kind in words or KINDS:
        lines = list(KINDS[kind]())
        table = Table(title=kind, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
