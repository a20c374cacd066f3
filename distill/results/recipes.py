"""What published code ran for the rows of a table: reference recipes of their pair, their own, or of their methods."""

from __future__ import annotations

from distill.base import locations
from distill.config import composer
from distill.config.reference import ReferenceConfig, applied, of_pair
from distill.results.experiment import Experiment


def pair_recipe(pair: str) -> list[ReferenceConfig]:
    """The reference recipe of all rows of a pair."""
    return _read("model", pair, pair)


def row_recipe(experiment: Experiment, label: str, pair: str) -> list[ReferenceConfig]:
    """The reference recipe of a row for a pair, beside that of all rows: its own, its table's, or else its method's."""
    if label not in experiment.rows:  # Teacher and SFT
        return []
    row = experiment.rows[label]
    chosen = [text.lstrip("+").partition("=")[::2] for text in [*row.overrides, *row.pairs.get(pair, [])]]
    method = dict(chosen).get("method", "none")
    return experiment.recipe(label, pair) or applied(method_recipe(method, pair), dict(chosen))


def method_recipe(name: str, pair: str) -> list[ReferenceConfig]:
    """The reference recipe of a method for a pair."""
    return _read("method", name, pair)


def _read(group: str, option: str, pair: str) -> list[ReferenceConfig]:
    """The recipe of an option of a config group for a pair."""
    if option not in locations.options(group):
        return []
    entries = composer.merged([f"{group}={option}"])[group].get("reference") or []
    return of_pair([ReferenceConfig.model_validate(entry) for entry in entries], pair)
