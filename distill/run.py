"""`python -m distill.run [group=option] [section.key=value] [-m a=1,2]`: teacher, student, evaluation, table.

Hydra composes and sweeps; every job is checked before the first one starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from distill.base.errors import FAILED, UserError, command, report
from distill.base.locations import CONF, add_config_dir, take_config_dir
from distill.base.processes import name_command
from distill.config import Config
from distill.config.compose import checked, for_hydra, jobs, load, resolve, search_path

MULTIRUN = ("-m", "--multirun")
VALUED = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
          "--experimental-rerun")  # fmt: skip
FIXED = ("--config-path", "-cp", "--config-name", "-cn")
HELP = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")
PRINTED = (["--cfg", "job"], ["-c", "job"], ["--cfg=job"])  # Hydra would compose anew for the same text
ROWS = "rows.csv"  # what a job measured, in its own folder, for the table at the end of a sweep


def ordered(words: list[str]) -> tuple[list[str], list[str]]:
    """The command line's flags (each with its value) and its overrides.

    Flags have to stand first: Hydra 1.3 rejects overrides after `-m` when others stand before it (upstream issue
    3053). Of `--cfg` and `-m` together only `--cfg` is kept: a merged config is one job's.
    """
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        if takes_value or word.startswith("-"):
            flags.append(word)
            takes_value = not takes_value and word in VALUED
        else:
            overrides.append(word)
    if any(f.split("=")[0] in ("--cfg", "-c") for f in flags):
        flags = [f for f in flags if f not in MULTIRUN]
    return flags, overrides


def check(overrides: list[str], sweep: bool) -> None:
    """Compose and check every job of the command line, loading nothing.

    Raises:
        UserError: with the problems of all jobs.
    """
    try:
        every = jobs(overrides) if sweep else [overrides]
    except HydraException:
        every = [overrides]  # an override that does not parse; load names it
    problems: list[str] = []
    for job in every:
        try:
            check_folders(load(job))
        except UserError as error:
            problems += [p for p in error.problems if p not in problems]
    if problems:
        raise UserError(problems)


def check_folders(config: Config) -> None:
    """Refuse folders that nothing can be written to, making none.

    Raises:
        UserError: naming them.
    """
    problems = []
    for key, folder in (("paths.store", config.paths.store), ("paths.results", config.paths.results)):
        place = Path(folder).absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK):
            problems.append(f"{key}={folder}: {place} is no folder that can be written to; choose another")
    if problems:
        raise UserError(problems)


def run_job(composed: DictConfig) -> None:
    """One job: measure the row and print its table. A UserError is kept for the end, so that a sweep goes on."""
    try:
        _measure(composed)
    except UserError as error:
        FAILED.append(error)
        report(error)


def _measure(composed: DictConfig) -> None:
    # A launcher may have started this process, which then does not know the command line
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file" and source.provider != "main":
            add_config_dir(source.path)
    config = resolve(composed)
    from distill.base.console import say
    from distill.base.processes import is_main_process
    from distill.pipeline.measure import Files, measure
    from distill.pipeline.values import Row
    from distill.results import long
    from distill.results.report import show, update_manifest
    from distill.results.shape import Column, table

    row = Row(_label(config), config)
    files = Files(Path(config.paths.results) / config.model.name / "runs", "runs")
    lines, told = measure(row, files)
    if not is_main_process():
        return
    output = Path(HydraConfig.get().runtime.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if told is not None:
        update_manifest(files.folder / "runs.manifest.json", "runs", {row.run: told}, Path.cwd())
    where = {"model": config.model.name, "results": config.paths.results}
    lines[list(long.VALUES)].assign(**where).to_csv(output / ROWS, index=False)
    columns = [Column(d.title, d.name) for d in row.plan.sets.values()]
    seeds = ", ".join(map(str, config.seed))
    show(table([(row.label, lines)], columns), f"{config.model.name}, ROUGE-L, generation seed {seeds}")
    say(f"values: {files.values}")


def _label(config: Config) -> str:
    """`akl(mu=0.5)`, `ab(alpha=0.2, beta=0.7) mixed`: loss and sampler as they ran.

    A switch between ours and published code is shown where it is on, and of a sampler what is not at its default.
    """
    from distill.samplers import defaults

    sampler = config.sampler
    usual = defaults(sampler.name) | {"max_new_tokens": config.eval.max_new_tokens}
    own = {k: v for k, v in sampler.chosen.items() if usual[k] != v}
    loss = _called(config.loss.name, config.loss.chosen)
    return loss if sampler.name == "fixed" else f"{loss} {_called(sampler.name, own)}"


def _called(name: str, parameters: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{k}={f'{v:g}' if isinstance(v, float) else v}" for k, v in _flat(parameters))
    return f"{name}({shown})" if shown else name


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those inside a group of parameters as `group.name`."""
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def main(words: list[str]) -> int:
    """Order the words, check all jobs, hand over to Hydra."""
    flags, overrides = ordered(take_config_dir(words))
    fixed = [f for f in flags if f.split("=")[0] in FIXED]
    if fixed:
        raise UserError(
            f"{fixed[0]}: the configuration is the one in conf/; change values as group=option or key=value, and add"
            " files of your own with --config-dir DIR"
        )
    if any(f.split("=")[0] in HELP for f in flags):
        overrides = [*overrides, *search_path()]
    elif flags in PRINTED and not any(o.lstrip("+~").startswith("hydra") for o in overrides):
        sys.stdout.write(merged_config(overrides))
        return 0
    else:
        check(overrides, sweep=any(f in MULTIRUN for f in flags))
        overrides = for_hydra(overrides)
    name_command()
    sys.argv[1:] = [*flags, *overrides]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)()
    return 2 if FAILED else 0


def merged_config(overrides: list[str]) -> str:
    """What Hydra prints for `--cfg job`: one job's merged config, checked, interpolations as they are written.

    Raises:
        UserError: with every problem found.
    """
    composed, config = checked(overrides)
    check_folders(config)
    return OmegaConf.to_yaml(composed)


if __name__ == "__main__":
    raise SystemExit(command(main))
