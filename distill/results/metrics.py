"""Every metric, each defined here once: its name, unit, which artifact it is read from, and how its values are made.

To add one: a `Metric` in `METRICS`. A metric of an artifact that no stage makes yet needs that stage too
(`distill.pipeline.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from distill.evaluation.responses import Scored, read_responses
from distill.evaluation.text import distinct

TRAINING = "training"  # stands for the data set of what a training cost
VALIDATION = "validation"  # stands for the data set of a training's own validations
BENCHMARKS = "benchmarks"  # stands for the data set of lm-eval's tasks

Value = tuple[str, float, int]  # a metric's name, its value, and over how many responses, positions or rows


@dataclass(frozen=True)
class Finished:
    """A finished artifact as a metric reads it.

    Attributes:
        folder: where it lies.
        manifest: its `artifact.json`.
        topics: the topic of each example of its data set by id, "" for none.
        details: what its name does not tell, such as a benchmark's task.
        shared: manifests of the artifacts that were made once for this one and others, such as a teacher's stored
            hidden states.
    """

    folder: Path
    manifest: Mapping[str, Any]
    topics: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    shared: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def responses(self) -> list[Scored]:
        """An evaluation's scored responses."""
        return read_responses(self.folder)

    @cached_property
    def curve(self) -> pd.DataFrame:
        """A training's curve."""
        return pd.read_csv(self.folder / "curve.csv")


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of them whose names begin alike.

    Attributes:
        name: as result files have it; a family's ends with ":" (`rouge_l:` is ROUGE-L by topic).
        unit: in words, for a table's header.
        stage: of the artifacts that its values are read from.
        values: gives name, value and number of what was measured, from a finished artifact; nothing where it does not
            tell.
        dataset: stands for the data set of its facts, where they are not about the artifact's own set.
        any_size: whether its values may be of any size, shown with three digits; others are shown with two decimals.
        per_prompt: the column of a run's scores by prompt that it is the mean of, for paired tests; a family's is found
            by `per_prompt_column`.
    """

    name: str
    unit: str
    stage: str
    values: Callable[[Finished], Iterable[Value]]
    dataset: str | None = None
    any_size: bool = False
    per_prompt: bool = False

    @property
    def is_family(self) -> bool:
        """Whether it stands for several metrics whose names begin alike."""
        return self.name.endswith(":")


def _mean_of(name: str, of: Callable[[Scored], float | None]) -> Callable[[Finished], Iterator[Value]]:
    """A metric that is a mean over responses; none where no response has a value."""

    def values(finished: Finished) -> Iterator[Value]:
        listed = [value for response in finished.responses if (value := of(response)) is not None]
        if listed:
            yield name, sum(listed) / len(listed), len(finished.responses)

    return values


def _by_topic(finished: Finished) -> Iterator[Value]:
    for topic in sorted({finished.topics.get(r.id, "") for r in finished.responses} - {""}):
        chosen = [r.rouge_l for r in finished.responses if finished.topics[r.id] == topic]
        yield f"rouge_l:{topic}", sum(chosen) / len(chosen), len(chosen)


def _distinct(n: int) -> Callable[[Finished], Iterator[Value]]:
    def values(finished: Finished) -> Iterator[Value]:
        yield f"distinct_{n}", distinct([r.text for r in finished.responses], n), len(finished.responses)

    return values


def _bertscore(finished: Finished) -> Iterator[Value]:
    yield finished.details["metric"], finished.manifest["bertscore"], finished.manifest["rows"]


def _agreement(name: str) -> Callable[[Finished], Iterator[Value]]:
    def values(finished: Finished) -> Iterator[Value]:
        yield f"agreement_{name}", finished.manifest[name], finished.manifest["positions"]

    return values


def _exposure(finished: Finished) -> Iterator[Value]:
    for length, value in finished.manifest["exaccerr"].items():
        yield f"exaccerr:{length}", value, finished.manifest["rows"]


def _benchmark(finished: Finished) -> Iterator[Value]:
    details = finished.details
    for measure, value in finished.manifest["metrics"].items():
        yield f"{details['task']}:{measure}:{details['shots']}{details['suffix']}", value, finished.manifest["rows"]


def _cost(name: str) -> Callable[[Finished], Iterator[Value]]:
    """Costs of a training; none where they were not measured (by an earlier version, or resumed at its end)."""

    def values(finished: Finished) -> Iterator[Value]:
        manifest = finished.manifest
        if manifest.get("peak_bytes") is None or manifest.get("seconds_per_step") is None:
            return
        seconds = manifest["seconds_per_step"] * manifest["steps"]
        shared_seconds = sum(manifest["seconds"] for manifest in finished.shared)
        costs = {
            "peak_gb": manifest["peak_bytes"] / 1e9,
            "minutes": (seconds + shared_seconds) / 60,
            "seconds_per_sample": seconds / manifest["samples"],
        }
        yield name, costs[name], 1

    return values


def _best_validation(finished: Finished) -> Iterator[Value]:
    rows = finished.manifest["rows"]["valid"]
    yield "best_rouge_l", float(finished.curve["eval_rouge_l"].max()), rows


METRICS = [
    Metric("rouge_l", "ROUGE-L F1, 0 to 100", "evaluate", _mean_of("rouge_l", lambda r: r.rouge_l), per_prompt=True),
    Metric("length", "tokens of a response", "evaluate", _mean_of("length", lambda r: r.tokens)),
    Metric("eos_rate", "percent ended by EOS", "evaluate", _mean_of("eos_rate", lambda r: 100.0 * r.ended)),
    Metric(
        "truncation_rate",
        "percent cut by the length limit",
        "evaluate",
        _mean_of("truncation_rate", lambda r: 100.0 * (not r.ended)),
    ),
    Metric("exact_match", "percent", "evaluate", _mean_of("exact_match", lambda r: r.exact_match)),
    *(Metric(f"distinct_{n}", f"percent of different {n}-grams", "evaluate", _distinct(n)) for n in (1, 2, 3)),
    Metric("rouge_l:", "ROUGE-L F1 of a topic's prompts, 0 to 100", "evaluate", _by_topic, per_prompt=True),
    Metric("bertscore:", "BERTScore F1, 0 to 100", "bertscore", _bertscore, per_prompt=True),
    Metric("agreement_top1", "percent of positions with one top token", "agree", _agreement("top1")),
    Metric("agreement_fkl", "forward KL from the teacher in nats a token", "agree", _agreement("fkl")),
    Metric("agreement_rkl", "reverse KL from the teacher in nats a token", "agree", _agreement("rkl")),
    Metric("exaccerr:", "excess accumulated error in percent", "exposure", _exposure),
    Metric(
        "peak_gb",
        "GB of 10^9 bytes, the most that the process held in training: a GPU's allocations, or its resident set",
        "train",
        _cost("peak_gb"),
        dataset=TRAINING,
        any_size=True,
    ),
    Metric(
        "minutes",
        "Minutes of a training's steps and of what is done once for them: the teacher's signal, its answers",
        "train",
        _cost("minutes"),
        dataset=TRAINING,
        any_size=True,
    ),
    Metric(
        "seconds_per_sample",
        "Seconds of a training's steps for each sample",
        "train",
        _cost("seconds_per_sample"),
        dataset=TRAINING,
        any_size=True,
    ),
    Metric(
        "best_rouge_l",
        "the best validation ROUGE-L of the training, 0 to 100",
        "train",
        _best_validation,
        dataset=VALIDATION,
    ),
    Metric("benchmark:", "percent", "benchmark", _benchmark, dataset=BENCHMARKS),
]


def find(dataset: str, name: str) -> Metric:
    """The metric of that name over a data set.

    Raises:
        KeyError: there is none.
    """
    if dataset == BENCHMARKS:
        name = "benchmark:"
    for metric in METRICS:
        if metric.name == name or (metric.is_family and name.startswith(metric.name)):
            return metric
    raise KeyError(name)


def of_stage(stage: str) -> list[Metric]:
    """The metrics that are read from a stage's artifacts."""
    return [metric for metric in METRICS if metric.stage == stage]


def values_of(finished: Finished, stage: str) -> Iterator[tuple[Metric, Value]]:
    """All that a finished artifact of a stage tells, metric by metric."""
    for metric in of_stage(stage):
        for value in metric.values(finished):
            yield metric, value


def per_prompt_column(name: str) -> tuple[str, str | None]:
    """The column of a run's scores by prompt behind a metric, and the topic whose prompts count (None for all)."""
    family, _, topic = name.partition(":")
    return ("rouge_l", topic or None) if family == "rouge_l" else (name, None)
