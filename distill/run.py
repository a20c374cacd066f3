"""`python -m distill.run [group=option] [section.key=value] [-m a=1,2]`: teacher, student, evaluation, table.

Hydra composes and sweeps; every job is checked before the first one starts.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from distill.base.errors import FAILED, UserError, command, report_and_go_on
from distill.base.locations import CONF, add_config_dir, take_config_dir
from distill.base.processes import name_command
from distill.config.compose import checked, for_hydra, jobs, load, resolve, search_path
from distill.results.folders import check_folders

MULTIRUN = ("-m", "--multirun")
VALUED = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
          "--experimental-rerun")  # fmt: skip
FIXED = ("--config-path", "-cp", "--config-name", "-cn")
HELP = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")
PRINTED = (["--cfg", "job"], ["-c", "job"], ["--cfg=job"])  # Hydra would compose anew for the same text


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


def run_job(composed: DictConfig) -> None:
    """One job: measure the row and print its table. A UserError is kept for the end, so that a sweep goes on."""
    try:
        _measure(composed)
    except UserError as error:
        FAILED.append(error)
        report_and_go_on(error)


def _measure(composed: DictConfig) -> None:
    # A launcher may have started this process, which then does not know the command line
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file" and source.provider != "main":
            add_config_dir(source.path)
    config = resolve(composed)
    from distill.base.console import say
    from distill.base.processes import is_main_process
    from distill.pipeline.measure import Measurements, measure
    from distill.pipeline.rows import Row, run_label
    from distill.results.runs import write_runs_file
    from distill.results.sweep import ROWS, job_lines, rouge_table
    from distill.results.terminal import show

    row = Row(run_label(config), config)
    measure(row, Measurements())
    if not is_main_process():
        return
    values = write_runs_file(config.paths.results, config.model.name)
    sets = row.plan.sets.values()
    titles, hashes = ({d.name: getattr(d, name) for d in sets} for name in ("title", "fingerprint"))
    lines = job_lines(row.folder, row.label, titles, hashes, config.seed)
    output = Path(HydraConfig.get().runtime.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    lines.assign(model=config.model.name, results=config.paths.results).to_csv(output / ROWS, index=False)
    seeds = ", ".join(map(str, config.seed))
    show(rouge_table(lines), f"{config.model.name}, ROUGE-L, generation seed {seeds}")
    say(f"run: {row.folder.folder}; all runs: {values}")


def main(words: list[str]) -> int:
    """Order the words, check all jobs, hand over to Hydra."""
    gc.disable()  # imports and configs make objects and no garbage: 7 % of the time of --cfg job
    try:
        checked_words = prepared(words)
    finally:
        gc.enable()
    if checked_words is None:
        return 0
    name_command()
    sys.argv[1:] = checked_words
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)()
    return 2 if FAILED else 0


def prepared(words: list[str]) -> list[str] | None:
    """The words for Hydra, every job checked; None where the merged config was all that was asked, and is printed.

    Raises:
        UserError: with the problems of all jobs.
    """
    flags, overrides = ordered(take_config_dir(words))
    fixed = [f for f in flags if f.split("=")[0] in FIXED]
    if fixed:
        raise UserError(
            f"{fixed[0]}: the configuration is the one in conf/; change values as group=option or key=value, and add"
            " files of your own with --config-dir DIR"
        )
    if any(f.split("=")[0] in HELP for f in flags):
        return [*flags, *overrides, *search_path()]
    if flags in PRINTED and not any(o.lstrip("+~").startswith("hydra") for o in overrides):
        sys.stdout.write(merged_config(overrides))
        return None
    check(overrides, sweep=any(f in MULTIRUN for f in flags))
    return [*flags, *for_hydra(overrides)]


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
