"""The words of a command that names a table: which table, which of its rows, over which seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from distill.base.errors import UserError
from distill.base.locations import take_config_dir
from distill.pipeline.tables import Table, chosen_rows
from distill.results import experiment as experiments
from distill.results.experiment import Experiment

SEEDS = "seed=[10,20,30,40,50]"


def requested(words: Sequence[str]) -> tuple[Table, list[str]]:
    """The table that a command line names, and the labels of its chosen rows."""
    words = take_config_dir(words)
    if not words:
        raise UserError("which table? Write PAPER/TABLE (python -m distill.list tables shows all)")
    name, overrides = words[0], list(words[1:])
    experiment = experiments.load(name)
    rows, overrides = option(overrides, "rows")
    train_seeds, overrides = option(overrides, "train_seeds")
    notes = [w.removeprefix("note=") for w in overrides if w.startswith("note=")]
    overrides = [w for w in overrides if not w.startswith("note=")]
    _refuse_row_settings(experiment, overrides, train_seeds)
    if not any(o.split("=")[0] == "seed" for o in overrides):
        overrides = [SEEDS, *overrides]
    if experiment.model is not None and not any(o.split("=")[0] == "model" for o in overrides):
        overrides = [f"model={experiment.model}", *overrides]
    table = Table(name, experiment, overrides, train_seeds, notes)
    return table, chosen_rows(table, rows)


def option(words: Sequence[str], name: str) -> tuple[list[Any] | None, list[str]]:
    """The value of `name=[...]` among the words, and the other words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    rest = [w for w in words if not w.startswith(f"{name}=")]
    given = [w for w in words if w.startswith(f"{name}=")]
    if not given:
        return None, rest
    readings = given[-1:]
    if listed := re.fullmatch(rf"{name}=\[(.*)\]", given[-1]):  # a quote begins a string; Jensen's KL is none
        quoted = ",".join(f'"{one.strip()}"' for one in listed[1].split(","))
        readings.append(f"{name}=[{quoted}]")
    for word in readings:
        try:
            value = OverridesParser.create().parse_override(word).value()
            break
        except HydraException:
            continue
    else:
        raise UserError(f"{given[-1]}: not a list; write {name}=[a,b]")
    values = value if isinstance(value, list) else [value]
    return [v if isinstance(v, (int, bool)) else str(v) for v in values], rest


def _refuse_row_settings(experiment: Experiment, overrides: Sequence[str], train_seeds: list[Any] | None) -> None:
    """What makes a row that row cannot be set for all of them: they would keep their labels and lie."""
    keys = {override: _key(override) for override in overrides}
    model = next((o.split("=")[1] for o in reversed(overrides) if _key(o) == "model"), experiment.model)
    rows = {_key(word) for row in experiment.rows.values() for word in [*row.overrides, *row.pairs.get(str(model), [])]}
    own = [o for o, key in keys.items() if key.split(".")[0] in ("loss", "method", "sampler") or key in rows]
    problems = [f"{o}: each row of a table has its own; python -m distill.run takes it" for o in own]
    if train_seeds is not None:
        problems += [
            f"{o}: train_seeds={train_seeds} is given too; keep one" for o, k in keys.items() if k == "train.seed"
        ]
    if problems:
        raise UserError(problems)


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]
