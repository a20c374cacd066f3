"""Where the project's own files are, and a user's folders that add to them.

In a checkout (or an editable install) configs, tables and published numbers are in folders beside `distill/`. In a
wheel they are inside the package, see `[tool.setuptools]` in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.base.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = ("--config-dir", "-cd")
PLAIN_KEYS = ("seed", "plugins")  # Hydra would take a folder of this name for a config group and not set the key


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
        UserError: it is not a folder, or one of its files has the same name as one of the project's files.
    """
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--config-dir {text}: no such folder; name one that holds files such as loss/NAME.yaml")
    if folder in _user_folders or folder == CONF:
        return
    problems = [
        f"--config-dir {text}: {file.relative_to(folder)} has the name of one of the project's own files, which would"
        " be read in its place; rename it"
        for file in sorted(folder.glob("*/*.yaml"))
        if (CONF / file.relative_to(folder)).is_file()
    ] + [
        f"--config-dir {text}: experiments/{name}.yaml has the name of one of the project's own tables; rename it"
        for name in _names(folder / "experiments")
        if (EXPERIMENTS / f"{name}.yaml").is_file()
    ]
    problems += [
        f"--config-dir {text}: {key} is a key of the config, and a folder of its name would be taken for a group of"
        " options; rename it"
        for key in PLAIN_KEYS
        if (folder / key).is_dir()
    ]
    if problems:
        raise UserError(problems)
    _user_folders.append(folder)


def take_config_dir(words: Sequence[str]) -> list[str]:
    """The command-line arguments without `--config-dir DIR`; every such folder is passed to `add_config_dir`.

    Raises:
        UserError: as `add_config_dir`, or no folder follows the option.
    """
    others, open_flag = [], ""  # an option whose folder is the next argument
    for word in words:
        flag, _, value = word.partition("=")
        if open_flag:
            add_config_dir(word)
            open_flag = ""
        elif flag in CONFIG_DIR and value:
            add_config_dir(value)
        elif flag in CONFIG_DIR:
            open_flag = flag
        else:
            others.append(word)
    if open_flag:
        raise UserError(f"{open_flag}: which folder? Write {open_flag} DIR")
    return others


def options(group: str) -> dict[str, Path]:
    """The files of a config group by option name: the project's and those of `--config-dir`."""
    folders = [CONF, *_user_folders]
    files = [file for folder in reversed(folders) for file in (folder / group).glob("*.yaml")]
    return dict(sorted((file.stem, file) for file in files))


def tables(experiments: Path = EXPERIMENTS) -> dict[str, Path]:
    """The YAML files of tables by `paper/table`: the project's and those of `--config-dir`."""
    folders = [experiments, *(folder / "experiments" for folder in _user_folders)]
    return dict(sorted((name, folder / f"{name}.yaml") for folder in reversed(folders) for name in _names(folder)))


def _names(experiments: Path) -> list[str]:
    return [file.relative_to(experiments).with_suffix("").as_posix() for file in experiments.glob("*/*.yaml")]
