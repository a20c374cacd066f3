"""`python -m distill.list [losses|samplers|methods|models|datasets|tables]`: what there is, one line each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from rich.markup import escape
from rich.table import Table

from distill.base.console import console
from distill.base.errors import UserError, command
from distill.config.compose import CONF, nearest

Lines = Iterator[tuple[str, ...]]


def _comment(group: str) -> Lines:
    """Options of a config group with the first comment of their file."""
    for path in sorted((CONF / group).glob("*.yaml")):
        text = path.read_text(encoding="utf-8").replace("# @package _global_", "")
        found = re.search(r"#\s*(.+)", text)
        yield path.stem, found.group(1).strip() if found else ""


def losses() -> Lines:
    """Losses, with their equations and where those come from."""
    from distill.losses import describe, names

    yield "sft", "Cross-entropy on the data alone; no teacher.", "-log q(response token)"
    for name in names():
        line, formula, source = describe(name)
        yield name, line, f"{formula}  [{source}]"


def methods() -> Lines:
    """Methods with what they bundle."""
    for path in sorted((CONF / "method").glob("*.yaml")):
        bundle = re.findall(r"override /(\w+): (\w+)", path.read_text(encoding="utf-8"))
        if bundle:
            yield path.stem, ", ".join(f"{group}={option}" for group, option in bundle)


def tables() -> Lines:
    """Tables with their targets."""
    from distill.results import experiment

    for name in experiment.names():
        found = experiment.load(name)
        yield name, found.title, f"make {name.replace('/', '-').replace('_', '-')} MODEL={found.model}"


KINDS: dict[str, Callable[[], Lines]] = {
    "losses": losses,
    "samplers": lambda: _comment("sampler"),
    "methods": methods,
    "models": lambda: _comment("model"),
    "datasets": lambda: _comment("data"),
    "tables": tables,
}


def main(words: list[str]) -> int:
    """Print one kind, or all."""
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
