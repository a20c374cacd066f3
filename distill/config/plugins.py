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
    """Import these modules; a module that is already imported is not imported again.

    If `names` is not a list of strings, nothing is done: the schema refuses it.

    Raises:
        UserError: modules cannot be imported, or register a name that is taken; names them all.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return
    # At the end, so that a user's file never hides an installed module of the same name
    sys.path.extend(str(folder) for folder in (Path.cwd(), *config_dirs()) if str(folder) not in sys.path)
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
