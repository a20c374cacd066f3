"""A user's own modules, named by the config key `plugins`, which register losses and samplers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from distill.base.errors import UserError
from distill.base.locations import config_dirs
from distill.base.registry import LOSSES, SAMPLERS

PLACES = "a plugin is a module in the working directory, in the folder of --config-dir, or an installed one"


def import_plugins(names: Any) -> None:
    """Import these modules, once a process. Anything but a list of words is left for the schema to refuse.

    Raises:
        UserError: with every module that does not import, or that registers a name which is taken.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return
    # At the end, so that a user's file never stands before an installed module of its name
    sys.path.extend(str(place) for place in (Path.cwd(), *config_dirs()) if str(place) not in sys.path)
    problems = []
    for name in names:
        registered = [registry.snapshot() for registry in (LOSSES, SAMPLERS)]
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            for registry, before in zip((LOSSES, SAMPLERS), registered, strict=True):
                registry.restore(before)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            problems.append(f"plugins={name} does not import ({reason}); {PLACES}")
    if problems:
        raise UserError(problems)
