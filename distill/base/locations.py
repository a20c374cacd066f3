"""Where the project's own files lie, and a user's folder that adds to them.

In a checkout (or an editable install) configs, tables and published numbers are the folders beside `distill/`. A wheel
carries them inside the package, see `[tool.setuptools]` in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.base.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = ("--config-dir", "-cd")
PLAIN_KEYS = ("seed", "plugins")  # keys of the config that a folder of their name would turn into a group


def _checkout(package: Path) -> Path | None:
    """The folder of the checkout that `package` lies in; None for an installed copy."""
    folder = package.parent
    installed = (package / "_conf").is_dir()
    return None if installed or not (folder / "conf" / "config.yaml").is_file() else folder


CHECKOUT = _checkout(PACKAGE)
CONF = CHECKOUT / "conf" if CHECKOUT else PACKAGE / "_conf"
EXPERIMENTS = CHECKOUT / "experiments" if CHECKOUT else PACKAGE / "_experiments"
PAPER = CHECKOUT / "results" / "paper" if CHECKOUT else PACKAGE / "_paper"

_user_folders: list[Path] = []


def config_dirs() -> tuple[Path, ...]:
    """The folders named by `--config-dir`, absolute."""
    return tuple(_user_folders)


def add_config_dir(text: str | Path) -> None:
    """Look for configs, tables and plugins in this folder too.

    Raises:
        UserError: it is no folder, or one of its files has the name of a file of the project's, which would win.
    """
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--config-dir {text}: no such folder; name one that holds files such as loss/NAME.yaml")
    if folder in _user_folders or folder == CONF:
        return
    taken = [
        f"--config-dir {text}: {file.relative_to(folder)} has the name of one of the project's own files, which would"
        " be read in its place; rename it"
        for file in sorted(folder.glob("*/*.yaml"))
        if (CONF / file.relative_to(folder)).is_file()
    ] + [
        f"--config-dir {text}: experiments/{name}.yaml has the name of one of the project's own tables; rename it"
        for name in _names(folder / "experiments")
        if (EXPERIMENTS / f"{name}.yaml").is_file()
    ]
    taken += [
        f"--config-dir {text}: {key} is a key of the config, and a folder of its name would be taken for a group of"
        " options; rename it"
        for key in PLAIN_KEYS
        if (folder / key).is_dir()
    ]
    if taken:
        raise UserError(taken)
    _user_folders.append(folder)


def take_config_dir(words: Sequence[str]) -> list[str]:
    """The words of a command line without `--config-dir DIR`, whose folder is added.

    Raises:
        UserError: as `add_config_dir`, or the folder's name is missing.
    """
    rest, waiting = [], ""
    for word in words:
        flag, _, value = word.partition("=")
        if waiting:
            add_config_dir(word)
            waiting = ""
        elif flag in CONFIG_DIR and value:
            add_config_dir(value)
        elif flag in CONFIG_DIR:
            waiting = flag
        else:
            rest.append(word)
    if waiting:
        raise UserError(f"{waiting}: which folder? Write {waiting} DIR")
    return rest


def options(group: str) -> dict[str, Path]:
    """The files of a config group by option, the project's and those of `--config-dir`."""
    places = [CONF, *_user_folders]
    files = [file for place in reversed(places) for file in (place / group).glob("*.yaml")]
    return dict(sorted((file.stem, file) for file in files))


def tables(experiments: Path = EXPERIMENTS) -> dict[str, Path]:
    """The YAML files of tables by `paper/table`, the project's and those of `--config-dir`."""
    places = [experiments, *(folder / "experiments" for folder in _user_folders)]
    return dict(sorted((name, place / f"{name}.yaml") for place in reversed(places) for name in _names(place)))


def _names(experiments: Path) -> list[str]:
    return [file.relative_to(experiments).with_suffix("").as_posix() for file in experiments.glob("*/*.yaml")]
