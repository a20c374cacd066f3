"""`python -m distill.list [KIND]`: the available options of a kind, or of all kinds, one per line.

The kinds are losses, samplers, methods, models, datasets, tables and recipes. `--config-dir DIR` adds a folder of your
own configs and tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from distill.base import locations
from distill.base.console import console
from distill.base.errors import UserError, command, nearest

Rows = Iterator[tuple[str, ...]]


def _text(path: Path) -> str:
    """The text of a file; a list shows the other options even where one is not UTF-8."""
    return path.read_text(encoding="utf-8", errors="replace")


def _comment(path: Path) -> str:
    """The first comment of a config file, or an empty string if it has none."""
    text = _text(path).replace("# @package _global_", "")
    match = re.search(r"#\s*(.+)", text)
    return match.group(1).strip() if match else ""


def _comments(group: str) -> Rows:
    """The options of a config group, with the first comment of their files."""
    for name, path in locations.options(group).items():
        yield name, _comment(path)


def losses() -> Rows:
    """Losses with their equations and sources; those of `--config-dir` with their first comment and their file."""
    from distill.losses import describe, names

    yield "sft", "Cross-entropy on the data alone; no teacher.", "-log q(response token)"
    built_in = names()
    for name in built_in:
        summary, formula, source = describe(name)
        yield name, summary, f"{formula}  [{source}]"
    for name, path in locations.options("loss").items():
        if name not in ("sft", *built_in):
            yield name, _comment(path), str(path)


def methods() -> Rows:
    """Methods, with the group options that they select."""
    for name, path in locations.options("method").items():
        bundle = re.findall(r"override /(\w+): (\w+)", _text(path))
        if bundle:
            yield name, ", ".join(f"{group}={option}" for group, option in bundle)


def tables() -> Rows:
    """Tables, with their title and the command that builds them.

    Files are not checked against the schema here; that happens when the table is built.
    """
    for name, path in locations.tables().items():
        try:
            experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
            title, model = str(experiment["title"]), experiment["model"]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            title, model = f"{path} is not the file of a table: it has no title or no model", "MODEL"
        if not path.is_relative_to(locations.EXPERIMENTS):
            target = f"python -m distill.table {name} --config-dir {path.parents[2]}"
        elif locations.CHECKOUT is None:  # installed, without the Makefile
            target = f"python -m distill.table {name}" + (f" model={model}" if model else "")
        else:
            target = f"make {name.replace('/', '-').replace('_', '-')}" + (f" MODEL={model}" if model else "")
        yield name, title, target


def recipes() -> Rows:
    """What published code ran for pairs, methods and rows (`preset=reference`): overrides and their source."""
    for group in ("model", "method"):
        for name, path in locations.options(group).items():
            content = yaml.safe_load(_text(path)) or {}
            yield from _recipes(f"{group}={name}", content.get(group))
    for name, path in locations.tables().items():
        try:
            experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
            yield from _recipes(f"{name}, rows without one of their own", experiment)
            for label, row in (experiment.get("rows") or {}).items():
                yield from _recipes(f"{name} {label}", row)
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            yield name, f"{path} is not the file of a table", ""


def _recipes(name: str, section: Any) -> Rows:
    for entry in (section or {}).get("reference") or []:
        pairs = ", ".join(entry.get("pairs") or ["every pair"])
        note = f" ({entry['note']})" if entry.get("note") else ""
        yield f"{name} ({pairs})", " ".join(entry.get("overrides") or ["nothing else"]) + note, entry["source"]


KINDS: dict[str, Callable[[], Rows]] = {
    "losses": losses,
    "samplers": lambda: _comments("sampler"),
    "methods": methods,
    "models": lambda: _comments("model"),
    "datasets": lambda: _comments("data"),
    "tables": tables,
    "recipes": recipes,
}


def main(words: list[str]) -> int:
    """Print the options of the kinds that are named, or of all kinds."""
    words = locations.take_config_dir(words)
    for word in (word for word in words if word.startswith("plugins=")):
        from distill.config.plugins import import_plugins  # loads pydantic, which a list does without

        plugins = yaml.safe_load(word.removeprefix("plugins="))
        import_plugins(plugins if isinstance(plugins, list) else [str(plugins)])
    words = [word for word in words if not word.startswith("plugins=")]
    unknown = [w for w in words if w not in KINDS]
    if unknown:
        kinds = ", ".join(KINDS)
        raise UserError([f"{w} is not a kind of option{nearest(w, KINDS)} (kinds: {kinds})" for w in unknown])
    for kind in words or KINDS:
        rows = list(KINDS[kind]())
        table = Table(title=kind, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
