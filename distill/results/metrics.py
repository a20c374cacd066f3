"""All metrics: name, unit, the stage whose artifacts they are read from, and the function that computes the values.

To add a metric, add a `Metric` to `METRICS`. If no stage makes the artifact that it reads, add the stage too
(`distill.pipeline.stages`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from distill.config.data import RESERVED
from distill.config.evaluation import RougeTokenizer
from distill.evaluation.responses import Scored, read_responses
from distill.evaluation.text import distinct

# Names in place of a data set's
TRAINING, VALIDATION, BENCHMARKS = RESERVED  # costs of a training, scores of its validations, lm-eval's tasks

ROUGE = "rouge_l"
ROUGE_NAMES = (ROUGE, *(f"{ROUGE}_{name}" for name in get_args(RougeTokenizer) if name != "english"))
Value = tuple[str, float, int]  # a metric's name, its value, and the number of responses, positions or rows behind it


@dataclass(frozen=True)
class Finished:
    """A finished artifact that metrics are read from.

    Attributes:
        folder: the artifact's folder.
        manifest: the content of its `artifact.json`.
        topics: the topic of each example of its data set by id; "" for an example without a topic.
        details: settings that the manifest does not record, such as a benchmark's task.
        shared: manifests of the artifacts that were made once for this artifact and others, such as a teacher's stored
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
    """One metric, or a family of metrics whose names have the same prefix.

    Attributes:
        name: the name in result files. A family's name ends with ":" (`rouge_l:` is ROUGE-L by topic).
        unit: the unit in words.
        stage: the stage whose artifacts the values are read from.
        values: the function that computes the values from a finished artifact. It may yield none.
        dataset: `TRAINING`, `VALIDATION` or `BENCHMARKS`; None if the facts are about the artifact's data set.
        any_size: whether tables show values with three digits. Otherwise they show two decimals.
        per_prompt: whether a run has the metric's scores by prompt, so that rows can be tested in pairs.
            `per_prompt_column` names the column of the scores.
        more_is_better: whether a table's best cell is the largest. Other metrics have no best cell.
    """

    name: str
    unit: str
    stage: str
    values: Callable[[Finished], Iterable[Value]]
    dataset: str | None = None
    any_size: bool = False
    per_prompt: bool = False
    more_is_better: bool = False

    @property
    def is_family(self) -> bool:
        """Whether this is a family of metrics whose names have the same prefix."""
        return self.name.endswith(":")


def _mean_of(name: str, score: Callable[[Scored], float | None]) -> Callable[[Finished], Iterator[Value]]:
    """The values of a metric that is a mean over responses; no value if `score` is None for all responses."""

    def values(finished: Finished) -> Iterator[Value]:
        scores = [value for response in finished.responses if (value := score(response)) is not None]
        if scores:
            yield name, sum(scores) / len(scores), len(finished.responses)

    return values


def _rouge_l(finished: Finished) -> Iterator[Value]:
    scores = [response.rouge_l for response in finished.responses]
    yield finished.details.get(ROUGE, ROUGE), sum(scores) / len(scores), len(scores)


def _rouge_l_by_topic(finished: Finished) -> Iterator[Value]:
    for topic in sorted({finished.topics.get(r.id, "") for r in finished.responses} - {""}):
        scores = [r.rouge_l for r in finished.responses if finished.topics[r.id] == topic]
        yield f"{finished.details.get(ROUGE, ROUGE)}:{topic}", sum(scores) / len(scores), len(scores)


def _distinct(n: int) -> Callable[[Finished], Iterator[Value]]:
    def values(finished: Finished) -> Iterator[Value]:
        yield f"distinct_{n}", distinct([r.text for r in finished.responses], n), len(finished.responses)

    return values


def _bertscore(finished: Finished) -> Iterator[Value]:
    yield finished.details["metric"], finished.manifest["bertscore"], finished.manifest["rows"]


def _agreement(name: str) -> Callable[[Finished], Iterator[Value]]:
    def values(finished: Finished) -> Iterator[Value]:
        suffix = teacher_suffix(finished.details["teacher"])
        yield f"agreement_{name}{suffix}", finished.manifest[name], finished.manifest["positions"]

    return values


def _exposure(finished: Finished) -> Iterator[Value]:
    for length, value in finished.manifest["exaccerr"].items():
        suffix = teacher_suffix(finished.details["teacher"])
        yield f"exaccerr:{length}{suffix}", value, finished.manifest["rows"]


def _corrections(finished: Finished) -> Iterator[Value]:
    suffix = teacher_suffix(finished.details["teacher"])
    for name, value in finished.manifest["values"].items():
        yield f"scrg:{name}{suffix}", value, finished.manifest["rows"]


def _density(finished: Finished) -> Iterator[Value]:
    suffix = teacher_suffix(finished.details["teacher"])
    for name, values in finished.manifest["density"].items():
        for place, value in enumerate(values):
            yield f"density:{name}:{place}{suffix}", value, finished.manifest["positions"]


def _benchmark(finished: Finished) -> Iterator[Value]:
    details = finished.details
    for measure, value in finished.manifest["metrics"].items():
        yield f"{details['task']}:{measure}:{details['shots']}{details['suffix']}", value, finished.manifest["rows"]


def _cost(name: str) -> Callable[[Finished], Iterator[Value]]:
    """The values of a cost of a training; none if costs were not measured (earlier versions, a resume at the end)."""

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
    yield f"best_{finished.details.get(ROUGE, ROUGE)}", float(finished.curve["eval_rouge_l"].max()), rows


METRICS = [
    Metric(
        "rouge_l",
        "ROUGE-L F1, 0 to 100",
        "evaluate",
        _rouge_l,
        per_prompt=True,
        more_is_better=True,
    ),
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
    Metric(
        "rouge_l:",
        "ROUGE-L F1 of a topic's prompts, 0 to 100",
        "evaluate",
        _rouge_l_by_topic,
        per_prompt=True,
        more_is_better=True,
    ),
    Metric("bertscore:", "BERTScore F1, 0 to 100", "bertscore", _bertscore, per_prompt=True, more_is_better=True),
    Metric("agreement_top1", "percent of positions with one top token", "agree", _agreement("top1")),
    Metric("agreement_fkl", "forward KL from the teacher in nats a token", "agree", _agreement("fkl")),
    Metric("agreement_rkl", "reverse KL from the teacher in nats a token", "agree", _agreement("rkl")),
    Metric("exaccerr:", "excess accumulated error in percent", "exposure", _exposure),
    Metric(
        "scrg:",
        "the student's texts before (written) and after (corrected) one correction by the teacher: n-grams of a"
        " text, the different ones and their percentage, means over texts; agreed: percent of texts without an error",
        "corrections",
        _corrections,
    ),
    Metric(
        "density:",
        "classes a token by the teacher's probability: all, and those that DAC-KL keeps",
        "density",
        _density,
    ),
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
        more_is_better=True,
    ),
    Metric("benchmark:", "percent", "benchmark", _benchmark, dataset=BENCHMARKS, more_is_better=True),
]


def rouge_name(tokenizer: RougeTokenizer) -> str:
    """The name of ROUGE-L with a tokenizer: `rouge_l` as the papers have it, else such as `rouge_l_characters`."""
    return ROUGE if tokenizer == "english" else f"{ROUGE}_{tokenizer}"


def is_rouge(name: str) -> bool:
    """Whether a metric is ROUGE-L, with any tokenizer, of all prompts or of a topic, or the best of validations."""
    return name.partition(":")[0].removeprefix("best_") in ROUGE_NAMES


def of_tokenizer(name: str, rouge: str) -> bool:
    """Whether a ROUGE-L metric has the tokenizer of `rouge`, a name of `ROUGE_NAMES`."""
    return name.partition(":")[0].removeprefix("best_") == rouge


def tokenizer_of(name: str) -> str | None:
    """The tokenizer that a ROUGE-L metric names, if it is not the papers'; None for other metrics."""
    rouge = name.partition(":")[0].removeprefix("best_")
    return rouge.removeprefix(f"{ROUGE}_") if rouge in ROUGE_NAMES[1:] else None


def with_tokenizer(name: str, tokenizer: RougeTokenizer) -> str:
    """The name of a column's metric where ROUGE-L is computed with this tokenizer."""
    return name.replace(ROUGE, rouge_name(tokenizer), 1) if is_rouge(name) else name


def teacher_suffix(teacher: str) -> str:
    """What the name of a metric ends with that depends on a teacher which is not part of the run.

    Args:
        teacher: the key of the teacher; "" if there is no such teacher.
    """
    return f":teacher={teacher}" if teacher else ""


def without_teacher(name: str, teacher: str) -> str | None:
    """A metric's name without the suffix of this teacher; None if it has the suffix of another one.

    Args:
        name: the name in a run's facts.
        teacher: the key of the teacher; "" if there is no such teacher.
    """
    plain, separator, key = name.partition(":teacher=")
    return plain if not separator or key == teacher else None


def find(dataset: str, name: str) -> Metric:
    """The metric or metric family that has the values of this data set and name.

    Raises:
        KeyError: no metric has the name.
    """
    if dataset == BENCHMARKS:
        name = "benchmark:"
    if name == "bertscore":  # in a column; the metric's name has the encoder too
        name = "bertscore:"
    if is_rouge(name):  # whichever its tokenizer
        name = re.sub(f"{ROUGE}_[a-z]+", ROUGE, name, count=1)
    special = dataset if dataset in (TRAINING, VALIDATION, BENCHMARKS) else None
    for metric in METRICS:
        if metric.dataset == special and (metric.name == name or (metric.is_family and name.startswith(metric.name))):
            return metric
    raise KeyError(name)


def names(dataset: str) -> list[str]:
    """The names of all metrics that a column over this data set can have; those of families end with a colon."""
    special = dataset if dataset in (TRAINING, VALIDATION, BENCHMARKS) else None
    return [metric.name for metric in METRICS if metric.dataset == special]


def stage_metrics(stage: str) -> list[Metric]:
    """The metrics that are read from a stage's artifacts."""
    return [metric for metric in METRICS if metric.stage == stage]


def values_of(finished: Finished, stage: str) -> Iterator[tuple[Metric, Value]]:
    """All values of a stage's finished artifact, each with its metric."""
    for metric in stage_metrics(stage):
        for value in metric.values(finished):
            yield metric, value


def per_prompt_column(name: str) -> tuple[str, str | None]:
    """The column of a run's scores by prompt that has a metric's scores, and the topic of its prompts (None: all)."""
    family, _, topic = name.partition(":")
    return (family, topic or None) if is_rouge(name) else (name, None)
