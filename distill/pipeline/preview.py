"""What measuring a table would make, and what that took before: `distill.table PAPER/TABLE --dry-run`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pandas as pd
from rich.filesize import decimal

from distill.base.errors import UserError
from distill.config.data import SplitConfig
from distill.data.sets import Dataset
from distill.pipeline.keys import VERSIONS
from distill.pipeline.measure import missing_nodes
from distill.pipeline.nodes import Node, upcoming
from distill.pipeline.request import NotFor, OtherPair, requested
from distill.pipeline.store import Store
from distill.pipeline.tables import Table
from distill.training.estimate import span

UNKNOWN = "not measured"
Cost = tuple[float | None, float | None]  # seconds and bytes; None if no artifact of the kind was made before


@dataclass
class Before:
    """Times and sizes of finished artifacts, by stage and label without its generation seed.

    Attributes:
        seconds: of the artifacts in a store and in the results' runs.
        sizes: bytes of those in the store.
    """

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    sizes: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    @staticmethod
    def read(store: Store, results: Path) -> Before:
        """All that the folders hold."""
        before = Before()
        for entry in store.entries(list(VERSIONS)):
            if entry.finished:
                kind = entry.manifest["stage"], _kind(entry.manifest["label"])
                before.seconds.setdefault(kind, []).append(entry.manifest["seconds"])
                before.sizes.setdefault(kind, []).append(entry.size)
        for path in results.glob("*/runs/*/run.json"):
            stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
            for name, manifest in stages.items():
                stage, _, folder = name.partition("/")
                before.seconds.setdefault((stage, _kind(folder.rpartition("-")[0])), []).append(manifest["seconds"])
        return before

    def cost(self, node: Node) -> Cost:
        """Seconds and bytes that making the node took before: the median of its kind, None if there is none.

        Its kind is its label's; if no such artifact was made, that of other losses of the pair with the same sampler,
        or of other models of the pair on the same data set.
        """
        values = [_of_kind(by_kind, node) for by_kind in (self.seconds, self.sizes)]
        first, second = (median(of_kind) if of_kind else None for of_kind in values)
        return first, second


def _kind(label: str) -> str:
    return re.sub(r"-seed\d+$", "", label)


def _of_kind(by_kind: dict[tuple[str, str], list[float]], node: Node) -> list[float]:
    label = _kind(node.label)
    if found := by_kind.get((node.stage, label)):
        return found
    pair, _, rest = label.partition("-")
    role, _, rest = rest.partition("-")
    on_set = f"-{node.subject.dataset}" if node.subject is not None and node.stage != "train" else ""
    sampler = rest.partition("-")[2] if node.stage == "train" else ""

    def is_like(other: str) -> bool:
        if not other.startswith(f"{pair}-{role}") or not other.endswith(on_set):
            return False
        return node.stage != "train" or (
            other.count("-") > 1 and other.split("-", 3)[3:] == ([sampler] if sampler else [])
        )

    return [x for (stage, other), values in by_kind.items() if stage == node.stage and is_like(other) for x in values]


@dataclass(frozen=True)
class RowPreview:
    """What measuring a row with one training seed would do.

    Attributes:
        label: the row's.
        train_seed: the training seed.
        teacher: the teacher's training seed.
        there: the artifacts whose facts are there.
        missing: whether facts of other artifacts are missing.
        to_make: the artifacts that would be made, without those that an earlier row needs too.
        costs: seconds and bytes of these, as far as they are known.
    """

    label: str
    train_seed: int
    teacher: int
    there: list[Node]
    missing: bool
    to_make: list[Node]
    costs: list[Cost]


def stand_in_for_data(table: Table) -> list[str]:
    """Put empty sets in the place of data that cannot be read, so that a preview can name stages without it.

    Returns:
        Why the data cannot be read; empty if it can.
    """
    rows = [row for label in table.labels for row in [*table.rows[label], *table.other_teachers[label].values()]]
    try:
        for row in rows:
            _ = row.plan.data, row.plan.sets
        return []
    except UserError as error:
        for row in rows:
            data, sets = row.config.data, row.config.eval.sets or list(row.config.data.eval)
            row.plan.data = (_unread("train", data.train), _unread("valid", data.valid))
            row.plan.sets = {name: _unread(name, data.eval[name]) for name in sets}
            row.plan.pretraining = []
        return error.problems


def _unread(name: str, split: SplitConfig) -> Dataset:
    return Dataset(name, split.title or name, [])


def previews(table: Table, chosen: Sequence[str]) -> list[RowPreview]:
    """The chosen rows of a table. Nothing is made."""
    before = Before.read(Store(table.config.paths.store), Path(table.config.paths.results))
    counted: set[str] = set()
    found = []
    for label in chosen if table.is_measured else ():
        for row in [*table.rows[label], *table.other_teachers[label].values()]:
            there, missing = missing_nodes(row, table.measurements)
            to_make = [node for node in upcoming(row.plan.store, missing) if node.name not in counted]
            counted |= {node.name for node in to_make}
            costs = [before.cost(node) for node in to_make]
            seeds = row.config.train
            found.append(RowPreview(label, seeds.seed, seeds.shared_seed, there, bool(missing), to_make, costs))
    return found


def preview(table: Table, chosen: Sequence[str]) -> pd.DataFrame:
    """A line for each chosen row and training: the stages that are there, and those that would run with their cost."""
    lines = []
    for row in previews(table, chosen):
        time, disk = _sums(row.costs)
        to_make = _stages(row.to_make) or ("what a row above makes" if row.missing else "")
        stages = {"there": _stages(row.there), "would run": to_make}
        seeds = {"training seed": str(row.train_seed), "teacher": str(row.teacher)}
        lines.append({"row": row.label, **seeds, **stages, "time": time, "disk": disk})
    return pd.DataFrame(lines, columns=["row", "training seed", "teacher", "there", "would run", "time", "disk"])


def overview(names: Sequence[str], overrides: Sequence[str]) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A line for each table: how many of its rows are there, and the cost of the others.

    Args:
        names: the tables.
        overrides: of all tables, such as `model=micro`.

    Returns:
        The lines of the tables that the overrides fit; why data cannot be read, if it cannot; and what is wrong with
        overrides.
    """
    lines, unread, problems = [], dict[str, None](), dict[str, None]()
    for name in names:
        try:
            table, chosen = requested([name, *overrides])
            unread |= dict.fromkeys(stand_in_for_data(table))
            rows = previews(table, chosen)
        except NotFor as error:
            why = "no numbers for this pair" if isinstance(error, OtherPair) else "a figure, which takes no rows"
            lines.append({"table": name, "time": why})
            continue
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        seeds = ", ".join(map(str, table.train_seeds or [table.common.train.seed])) if rows else ""
        finished = sum(not row.missing for row in rows)
        time, disk = _sums([cost for row in rows for cost in row.costs])
        counts = {"rows": str(len(rows)), "there": str(finished)}
        lines.append({"table": name, "training seeds": seeds, **counts, "time": time, "disk": disk})
    columns = ["table", "training seeds", "rows", "there", "time", "disk"]
    return pd.DataFrame(lines, columns=columns).fillna(""), list(unread), list(problems)


def _sums(costs: Sequence[Cost]) -> tuple[str, str]:
    """Time and disk space as text; `more than` if some were never measured."""
    if not costs:
        return "", ""
    texts = []
    for values, text in zip(zip(*costs, strict=True), (span, lambda size: decimal(round(size))), strict=True):
        known = [value for value in values if value is not None]
        more = "more than " if len(known) < len(values) else ""
        texts.append(f"{more}{text(sum(known))}" if known else UNKNOWN)
    return texts[0], texts[1]


def _stages(nodes: Sequence[Node]) -> str:
    counts = Counter(node.stage for node in nodes)
    return ", ".join(stage if count == 1 else f"{count} {stage}" for stage, count in counts.items())


def sets_line(table: Table) -> str:
    """The data sets of a table with their rows; of a figure without a model that it needs none."""
    if not table.labels:
        return "Sets: none; this figure needs no model"
    row = table.rows[table.labels[-1]][0]
    train, valid = row.plan.data
    sets = {"training": train, "validation": valid, **{d.title: d for d in row.plan.sets.values()}}
    counts = {title: f"{len(data.examples)} rows" if data.examples else "not here" for title, data in sets.items()}
    return "Sets: " + ", ".join(f"{title} {count}" for title, count in counts.items())
