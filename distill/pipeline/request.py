"""Parses the command line of a command on a table: the table, its rows and seeds, and overrides."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.base.errors import UserError
from distill.base.locations import take_config_dir
from distill.config.reference import overrides_of
from distill.pipeline.tables import Table, chosen_rows
from distill.results import experiment as experiments
from distill.results.experiment import Experiment
from distill.results.recipes import row_recipe

SEEDS = "seed=[10,20,30,40,50]"
# Keys of all rows, first parts or whole; a row that had others would not compare with the rest of its table
OF_TABLE = (
    "model", "data", "preset", "seed", "paths", "debug", "plugins", "tracker", "eval.sets", "eval.engine",
    "eval.rouge_tokenizer", "eval.bertscore", "eval.benchmarks", "eval.judge", "train.seed", "train.shared_seed",
    "train.teacher", "train_seeds", "teachers", "rows", "note", "other_pair",
)  # fmt: skip
OF_ROW = ("data.prune",)


def requested(words: Sequence[str]) -> tuple[Table, list[str]]:
    """The table that a command line names, and the labels of the rows that it selects.

    Args:
        words: `PAPER/TABLE` or the file of a table, then overrides, `row.LABEL='KEY=VALUE ...'`, `rows=[...]`,
            `train_seeds=[...]`, `teachers=[...]`, `other_pair=true` and `note=...`.

    Raises:
        UserError: no table is named, it does not exist, or one of the words is not allowed.
    """
    words = take_config_dir(words)
    if not words:
        raise UserError("which table? Type PAPER/TABLE; python -m distill.list tables lists all of them")
    name, overrides = words[0], list(words[1:])
    if name.endswith((".yaml", ".yml")):
        name, experiment = experiments.from_file(Path(name))
    else:
        experiment = experiments.load(name)
    if experiment.kind == "figure" and any(word.startswith("row.") for word in overrides):
        raise NotFor(f"{name}: this is a figure; rows can be added to tables")
    experiment, overrides = _with_added_rows(experiment, overrides)
    rows, overrides = option(overrides, "rows")
    train_seeds, overrides = seeds_option(overrides, "train_seeds")
    teachers, overrides = seeds_option(overrides, "teachers")
    other_pair, overrides = option(overrides, "other_pair")
    notes = [w.removeprefix("note=") for w in overrides if w.startswith("note=")]
    overrides = [w for w in overrides if not w.startswith("note=")]
    _refuse_row_settings(experiment, overrides, train_seeds)
    if not any(o.split("=")[0] == "seed" for o in overrides):
        overrides = [SEEDS, *overrides]
    if experiment.model is not None and not any(o.split("=")[0] == "model" for o in overrides):
        overrides = [f"model={experiment.model}", *overrides]
    if other_pair != [True]:
        _refuse_other_pair(name, experiment, [o.split("=")[1] for o in overrides if _key(o) == "model"])
    table = Table(name, experiment, overrides, train_seeds, notes, teachers)
    return table, chosen_rows(table, rows)


class NotFor(UserError):
    """A table or figure that some words for all tables are not for."""


class OtherPair(NotFor):
    """A pair of the papers for which a table has no printed numbers."""


def _refuse_other_pair(name: str, experiment: Experiment, pairs: Sequence[str]) -> None:
    """Refuse a pair of the papers for which this table has no printed numbers.

    Args:
        pairs: the values of `model=`; the last one counts.

    Raises:
        OtherPair: it is such a pair.
    """
    if not pairs or not experiment.sources or experiment.is_papers_pair(pairs[-1]):
        return
    of_rows = {pair for row in experiment.rows.values() for pair in (row.model, *row.pairs)}
    if pairs[-1] in experiments.papers_pairs() - of_rows:
        raise OtherPair(
            f"{name}: its paper has no numbers for {pairs[-1]}, only for {', '.join(experiment.printed_pairs)} (micro"
            f" and smollm2 run anywhere); other_pair=true runs it beside those for {experiment.model}"
        )


def _with_added_rows(experiment: Experiment, words: Sequence[str]) -> tuple[Experiment, list[str]]:
    """The table with the rows that words `row.LABEL=KEY=VALUE KEY=VALUE` add, and the other words.

    Raises:
        UserError: such a word cannot be read, or its label is taken.
    """
    rest = []
    for word in words:
        if not word.startswith("row."):
            rest.append(word)
            continue
        label, equals, settings = word.removeprefix("row.").partition("=")
        try:
            overrides = shlex.split(settings)
        except ValueError as error:
            raise UserError(f"{word}: {error}; write row.LABEL='KEY=VALUE KEY=VALUE'") from None
        if not equals or not overrides or (wrong := [o for o in overrides if "=" not in o]):
            found = f"{wrong[0]} is not KEY=VALUE" if equals and overrides else "it has no settings"
            raise UserError(
                f"{word}: {found}; write row.LABEL='KEY=VALUE KEY=VALUE', such as row.Mine='loss=skl loss.mix=0.3'"
            )
        if of_table := [o for o in overrides if _is_of_table(_key(o))]:
            raise UserError(
                f"{word}: {of_table[0]} is for all rows of a table; leave it out of the row, and write it as a word of"
                " its own if all rows shall have it"
            )
        experiment = experiment.with_row(label, overrides)
    return experiment, rest


def option(words: Sequence[str], name: str) -> tuple[list[Any] | None, list[str]]:
    """The values of the last `name=[...]` among the words (None if there is none), and the other words.

    Raises:
        UserError: the value is not a list.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    rest = [w for w in words if not w.startswith(f"{name}=")]
    assignments = [w for w in words if w.startswith(f"{name}=")]
    if not assignments:
        return None, rest
    attempts = assignments[-1:]
    if in_brackets := re.fullmatch(rf"{name}=\[(.*)\]", assignments[-1]):
        # Hydra takes the quote in a label such as Jensen's KL for the start of a string, so labels are quoted.
        quoted = ",".join(f'"{label.strip()}"' for label in in_brackets[1].split(","))
        attempts.append(f"{name}=[{quoted}]")
    for word in attempts:
        try:
            value = OverridesParser.create().parse_override(word).value()
            break
        except HydraException:
            continue
    else:
        raise UserError(f"{assignments[-1]}: not a list; write {name}=[a,b]")
    values = value if isinstance(value, list) else [value]
    return [v if isinstance(v, (int, bool)) else str(v) for v in values], rest


def seeds_option(words: Sequence[str], name: str) -> tuple[list[int] | None, list[str]]:
    """The seeds of the last `name=[...]` among the words (None if there is none), and the other words.

    Raises:
        UserError: the value is not a list of different whole numbers, or an empty list of training seeds.
    """
    values, rest = option(words, name)
    if values is None:
        return None, rest
    if wrong := [value for value in values if isinstance(value, bool) or not isinstance(value, int) or value < 0]:
        raise UserError(f"{name}: {wrong[0]} is not a seed; write whole numbers, such as {name}=[1,2,3]")
    if len(set(values)) < len(values):
        raise UserError(f"{name}={values} names a seed twice")
    if not values and name == "train_seeds":
        raise UserError("train_seeds=[] names no seed; leave it out for those that the table was measured with")
    return values, rest


def _refuse_row_settings(experiment: Experiment, overrides: Sequence[str], train_seeds: list[Any] | None) -> None:
    """Refuse overrides of keys that distinguish the rows: with one value in all rows, their labels would be wrong.

    Raises:
        UserError: there are such overrides, or the training seed is set twice.
    """
    keys = {override: _key(override) for override in overrides}
    model = next((o.split("=")[1] for o in reversed(overrides) if _key(o) == "model"), experiment.model)
    row_keys = {
        _key(word) for row in experiment.rows.values() for word in [*row.overrides, *row.pairs.get(str(model), [])]
    }
    if "preset=reference" in overrides:
        recipes = [reference for label in experiment.rows for reference in row_recipe(experiment, label, str(model))]
        row_keys |= {_key(word) for word in overrides_of(recipes)}
    problems = [
        f"{o}: each row of a table has its own value of this key; python -m distill.run takes any value"
        for o, key in keys.items()
        if key.split(".")[0] in ("loss", "method", "sampler") or key in row_keys
    ]
    if train_seeds is not None:
        problems += [
            f"{o}: train_seeds={train_seeds} is set too; leave one of them out"
            for o, key in keys.items()
            if key == "train.seed"
        ]
    if problems:
        raise UserError(problems)


def _is_of_table(key: str) -> bool:
    """Whether all rows of a table have one value of a key."""
    starts = lambda names: any(key == name or key.startswith(f"{name}.") for name in names)  # noqa: E731
    return starts(OF_TABLE) and not starts(OF_ROW)


def _key(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+~").split("=")[0]
