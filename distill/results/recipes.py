"""What published code ran for the rows of a table: their own reference recipes, or those of their methods."""

from __future__ import annotations

from distill.base import locations
from distill.config import composer
from distill.config.reference import ReferenceConfig, of_pair
from distill.results.experiment import Experiment


def recipe_of(experiment: Experiment, label: str, pair: str) -> list[ReferenceConfig]:
    """The reference recipe of a row for a pair, that of all rows of the table included; empty if there is none.

    A row without a recipe of its own has its method's.
    """
    row = experiment.rows[label]
    own = of_pair(row.reference, pair) or method_recipe(row.overrides, pair)
    return [*of_pair(experiment.reference, pair), *own]


def method_recipe(overrides: list[str], pair: str) -> list[ReferenceConfig]:
    """The reference recipe for a pair of the method that overrides choose; empty without a method."""
    name = next((text.split("=")[1] for text in reversed(overrides) if text.startswith("method=")), None)
    if name is None or name not in locations.options("method"):
        return []
    entries = composer.merged([f"method={name}"])["method"].get("reference") or []
    return of_pair([ReferenceConfig.model_validate(entry) for entry in entries], pair)
