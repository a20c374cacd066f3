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
    """A task of lm-eval, which of its metrics, and how many solved examples stand before a question."""

    task: str
    measure: str
    shots: int

    @classmethod
    def parse(cls, metric: str) -> Benchmark:
        """From a column's metric, such as `arc_challenge:acc_norm:5`.

        Raises:
            UserError: it is written otherwise.
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
        """The metric's name in long files, where answers to other questions are other metrics."""
        return self.metric + suffix(config)


def suffix(config: BenchmarksConfig) -> str:
    """What tells a metric over other questions apart: the first so many, or tasks of one's own."""
    only = f":first {config.limit}" if config.limit else ""
    return only + (f":{folder_hash(Path(config.tasks))[:8]}" if config.tasks else "")


def check(benchmarks: Sequence[Benchmark], config: BenchmarksConfig) -> None:
    """See that lm-eval and the tasks with their data are at hand.

    Raises:
        UserError: what is not, and what to do.
    """
    if benchmarks and config.tasks is None:
        hub.prepare()
    problems = []
    for name in dict.fromkeys(one.task for one in benchmarks):
        try:
            task = _tasks(config.tasks).load([name])["tasks"][name]
            known = [str(one["metric"]) for one in task.config.metric_list or []]
            problems += [
                f"{one.metric}: {name} measures {', '.join(known)}"
                for one in benchmarks
                if one.task == name and known and one.measure not in known
            ]
        except KeyError:
            problems.append(f"lm-eval has no task {name}; eval.benchmarks.tasks=FOLDER adds task files of your own")
        except (OSError, ValueError) as error:  # the hub's and datasets' own; a ValueError of a cache without its part
            problems.append(
                f"benchmark {name}: its data is neither in the cache nor to be had ({error}); run once with the hub in"
                " reach, or give a task of your own on local data: eval.benchmarks.tasks=FOLDER"
            )
    if problems:
        raise UserError(problems)


class Harness:
    """One model before lm-eval's tasks."""

    def __init__(self, model: Any, tokenizer: Any, config: Config):
        import torch
        from lm_eval.models.huggingface import HFLM

        self.config = config.eval.benchmarks
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._lm = HFLM(pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=self.config.batch_size)

    def run(self, task: str, shots: int) -> dict[str, Any]:
        """Every metric of a task, 0 to 100, and the number of questions."""
        from lm_eval import simple_evaluate

        found = simple_evaluate(
            model=self._lm,
            tasks=[task],
            num_fewshot=shots,
            limit=self.config.limit,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=_tasks(self.config.tasks),
        )
        assert found is not None  # only a process that is not the first gets none
        values = found["results"][task]
        metrics = {
            name.removesuffix(",none"): 100.0 * value
            for name, value in values.items()
            if name.endswith(",none") and isinstance(value, float) and "stderr" not in name
        }
        return {"metrics": metrics, "rows": found["n-samples"][task]["effective"]}


@cache
def _tasks(folder: str | None) -> Any:
    """lm-eval's tasks, and those of a folder.

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
