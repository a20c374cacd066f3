"""`python -m distill.run [group=option] [section.key=value] [-m a=1,2]`: trains and evaluates one row.

Trains teacher and student, evaluates both and prints a table. Hydra composes the config and runs sweeps. Config, data
and models of every job of a sweep are checked before the first one starts.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from distill.base.errors import FAILED, UserError, command, failed_job, of_machine
from distill.base.locations import CONF, add_config_dir, take_config_dir
from distill.base.processes import name_command
from distill.config.compose import checked, for_hydra, jobs, load, search_path
from distill.config.schema import Config
from distill.results.folders import check_folders

MULTIRUN = ("-m", "--multirun")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
                    "--experimental-rerun")  # fmt: skip
FIXED_FLAGS = ("--config-path", "-cp", "--config-name", "-cn")
FLAGS_WITHOUT_JOB = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")
# Answered here: Hydra would compose the config a second time
PRINT_CONFIG = (["--cfg", "job"], ["-c", "job"], ["--cfg=job"])


def flags_and_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """The command line's flags, each followed by its value, and its overrides.

    Flags come first: Hydra 1.3 rejects overrides after `-m` if others stand before it (upstream issue 3053).
    `-m` is dropped if `--cfg` is present, since a merged config belongs to one job.
    """
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        if takes_value or word.startswith("-"):
            flags.append(word)
            takes_value = not takes_value and word in FLAGS_WITH_VALUE
        else:
            overrides.append(word)
    if any(f.split("=")[0] in ("--cfg", "-c") for f in flags):
        flags = [f for f in flags if f not in MULTIRUN]
    return flags, overrides


def check(overrides: list[str], sweep: bool, examine: bool = False) -> None:
    """Compose and check every job of the command line.

    Args:
        overrides: of the command line.
        sweep: whether they are of several jobs.
        examine: whether data and models of a sweep with several jobs are checked, too; a single job does it itself.

    Raises:
        UserError: with the problems of all jobs.
    """
    try:
        job_overrides = jobs(overrides) if sweep else [overrides]
    except HydraException:
        job_overrides = [overrides]  # an override does not parse; load reports it
    problems: list[str] = []
    configs: dict[str, Config] = {}
    if not job_overrides:
        raise UserError(f"{' '.join(overrides)}: a sweep without jobs; a key's values, as in seed=10,20, are none here")
    common = set.intersection(*map(set, job_overrides))
    for job in job_overrides:
        try:
            configs[" ".join(word for word in job if word not in common)] = config = load(job, alone=not sweep)
            check_folders(config)
            problems += [p for p in config.missing_corpus if p not in problems]
        except UserError as error:
            problems += [p for p in error.problems if p not in problems]
    if problems:
        raise UserError(problems)
    if examine and len(configs) > 1:
        from distill.pipeline.measure import Measurements, check_rows
        from distill.pipeline.rows import Row

        check_rows([Row(label, config) for label, config in configs.items()], Measurements(), "job")


def run_job(composed: DictConfig) -> None:
    """Run one job: measure the row and print its table.

    An error is reported and added to `FAILED`, so that the other jobs of a sweep still run; the sweep's table has a
    line for it.
    """
    hydra_config = HydraConfig.get()
    alone = hydra_config.mode != RunMode.MULTIRUN
    try:
        with of_machine():
            _measure(composed)
    except UserError as error:
        _note_failure(failed_job(error), Path(hydra_config.runtime.output_dir))
    except Exception as error:
        if alone:
            raise
        _note_failure(failed_job(error), Path(hydra_config.runtime.output_dir))


def _note_failure(error: UserError, output: Path) -> None:
    """Leave a line for the sweep's table that this job failed, and why."""
    from distill.base.processes import is_main_process
    from distill.pipeline.rows import run_label
    from distill.results.sweep import note_failure

    if is_main_process():
        _, config = checked(list(HydraConfig.get().overrides.task))
        words = _words()
        note_failure(output, run_label(config), config.model.name, config.paths.results, error.problems, words)


def _words() -> list[str]:
    """The job's overrides as they were typed, for its line in the sweep's table."""
    return [word.lstrip("+") for word in HydraConfig.get().overrides.task]


def _measure(composed: DictConfig) -> None:
    # A Hydra launcher may have started this process, which then has not seen --config-dir
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file" and source.provider != "main":
            add_config_dir(source.path)
    # Composed again, with the method's reference recipe, which Hydra does not know
    whole, config = checked(list(HydraConfig.get().overrides.task))
    output = Path(HydraConfig.get().runtime.output_dir)
    if whole != composed and (hydra_copy := output / ".hydra/config.yaml").is_file():
        OmegaConf.save(whole, hydra_copy)
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
    runs_file = write_runs_file(config.paths.results, config.model.name)
    sets = row.plan.sets.values()
    titles, hashes = ({d.name: getattr(d, name) for d in sets} for name in ("title", "fingerprint"))
    lines = job_lines(row.folder, row.label, titles, hashes, config.seed)
    output.mkdir(parents=True, exist_ok=True)
    words = " ".join(_words())
    lines = lines.assign(model=config.model.name, results=config.paths.results, overrides=words)
    lines.to_csv(output / ROWS, index=False)
    seeds = ", ".join(map(str, config.seed))
    show(rouge_table(lines), f"{config.model.name}, ROUGE-L, generation seed {seeds}")
    say(f"run: {row.folder.folder}; all runs: {runs_file}")


def main(words: list[str]) -> int:
    """Check all jobs of the command line, then let Hydra run them."""
    gc.disable()  # imports and configs create few garbage objects; collecting took 7 % of the time of --cfg job
    try:
        hydra_words = hydra_arguments(words, examine=True)
    finally:
        gc.enable()
    if hydra_words is None:
        return 0
    name_command()
    sys.argv[1:] = hydra_words
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)()
    return 2 if FAILED else 0


def hydra_arguments(words: list[str], examine: bool = False) -> list[str] | None:
    """The arguments for Hydra, after a check of every job. For `--cfg job`, print the merged config and return None.

    Args:
        words: the command line.
        examine: whether data and models of a sweep are checked, too.

    Raises:
        UserError: with the problems of all jobs.
    """
    flags, overrides = flags_and_overrides(take_config_dir(words))
    fixed_flags = [f for f in flags if f.split("=")[0] in FIXED_FLAGS]
    if fixed_flags:
        raise UserError(
            f"{fixed_flags[0]}: the configuration is the one in conf/; change values with group=option or key=value,"
            " and add files of your own with --config-dir DIR"
        )
    if any(f.split("=")[0] in FLAGS_WITHOUT_JOB for f in flags):
        return [*flags, *overrides, *search_path()]
    if flags in PRINT_CONFIG and not any(o.lstrip("+~").startswith("hydra") for o in overrides):
        sys.stdout.write(merged_config(overrides))
        return None
    # Another launcher's jobs may run on another machine, which has the data and the models
    elsewhere = any(o.startswith("hydra/launcher=") and o != "hydra/launcher=basic" for o in overrides)
    check(overrides, any(f in MULTIRUN for f in flags), examine and not elsewhere)
    return [*flags, *for_hydra(overrides)]


def merged_config(overrides: list[str]) -> str:
    """The text that Hydra prints for `--cfg job`: the checked, merged config of one job, interpolations unresolved.

    Raises:
        UserError: with all problems of the config.
    """
    composed, config = checked(overrides, alone=True)
    check_folders(config)
    return OmegaConf.to_yaml(composed)


if __name__ == "__main__":
    raise SystemExit(command(main))
