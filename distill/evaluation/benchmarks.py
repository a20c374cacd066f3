"""Multiple-choice benchmarks through EleutherAI's lm-eval, called as a library."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from distill.base import hub
from distill.base.errors import UserError
from distill.config.evaluation import BenchmarksConfig
from distill.config.schema import Config
from distill.data.examples import folder_hash


@dataclass(frozen=True)
class Benchmark:
    """One metric of a task of lm-eval.

    Attributes:
        task: the task's name in lm-eval.
        measure: the metric's name in lm-eval.
        shots: the number of solved examples in the prompt.
    """

    task: str
    measure: str
    shots: int

    @classmethod
    def parse(cls, metric: str) -> Benchmark:
        """The benchmark of a column's metric, such as `arc_challenge:acc_norm:5`.

        Raises:
            UserError: the metric has another form.
        """
        parts = metric.split(":")
        if len(parts) != 3 or not parts[2].isdigit():
            raise UserError(f"{metric}: a benchmark column's metric is task:measure:shots, such as boolq:acc:0")
        return cls(parts[0], parts[1], int(parts[2]))

    @property
    def metric(self) -> str:
        """The metric's name in a table's YAML."""
        return f"{self.task}:{self.measure}:{self.shots}"

    def named(self, config: BenchmarksConfig) -> str:
        """The metric's name in long files. It includes `suffix`, so that other questions give another metric."""
        return self.metric + suffix(config)


def suffix(config: BenchmarksConfig) -> str:
    """What a metric's name ends in: the limit of questions and the hash of the folder of tasks, where set."""
    only = f":first {config.limit}" if config.limit else ""
    return only + (f":{folder_hash(Path(config.tasks))[:8]}" if config.tasks else "")


def check(benchmarks: Sequence[Benchmark], config: BenchmarksConfig) -> None:
    """Check that lm-eval and the tasks with their data are available.

    Raises:
        UserError: what is missing, and what to do.
    """
    if benchmarks and config.tasks is None:
        hub.prepare()
    problems = []
    for name in dict.fromkeys(benchmark.task for benchmark in benchmarks):
        try:
            task = _tasks(config.tasks).load([name])["tasks"][name]
            known = [str(entry["metric"]) for entry in task.config.metric_list or []]
            problems += [
                f"{benchmark.metric}: {name} measures {', '.join(known)}"
                for benchmark in benchmarks
                if benchmark.task == name and known and benchmark.measure not in known
            ]
        except KeyError:
            problems.append(f"lm-eval has no task {name}; eval.benchmarks.tasks=FOLDER adds task files of your own")
        except (OSError, ValueError) as error:  # of the hub and of datasets (ValueError: its cache is incomplete)
            problems.append(
                f"benchmark {name}: its data is neither in the cache nor to be had ({error}); run once with the hub in"
                " reach, or give a task of your own on local data: eval.benchmarks.tasks=FOLDER"
            )
    if problems:
        raise UserError(problems)


class Harness:
    """One model, to be evaluated on lm-eval's tasks."""

    def __init__(self, model: Any, tokenizer: Any, config: Config):
        import torch
        from lm_eval.models.huggingface import HFLM

        self.config = config.eval.benchmarks
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._lm = HFLM(pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=self.config.batch_size)

    def run(self, task: str, shots: int) -> dict[str, Any]:
        """Evaluate one task.

        Returns:
            `metrics`: every metric of the task by name, 0 to 100; `rows`: the number of questions.
        """
        from lm_eval import simple_evaluate

        results = simple_evaluate(
            model=self._lm,
            tasks=[task],
            num_fewshot=shots,
            limit=self.config.limit,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=_tasks(self.config.tasks),
        )
        assert results is not None  # lm-eval returns None only on ranks other than 0
        values = results["results"][task]
        metrics = {
            name.removesuffix(",none"): 100.0 * value
            for name, value in values.items()
            if name.endswith(",none") and isinstance(value, float) and "stderr" not in name
        }
        return {"metrics": metrics, "rows": results["n-samples"][task]["effective"]}


@cache
def _tasks(folder: str | None) -> Any:
    """A manager of lm-eval's own tasks and those of a folder.

    Raises:
        UserError: lm-eval is not installed, or there is no such folder.
    """
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"eval.benchmarks.tasks={folder}: no such folder")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("benchmarks need lm-eval: pip install 'distill[benchmarks]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=folder)
