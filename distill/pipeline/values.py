"""What a row's artifacts amount to, as lines of the long file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distill.base.console import say
from distill.base.errors import UserError
from distill.config.evaluation import EvalConfig
from distill.config.schema import Config
from distill.evaluation.benchmarks import Benchmark
from distill.evaluation.bertscore import metric_name
from distill.evaluation.text import distinct
from distill.pipeline.plan import Plan
from distill.pipeline.store import Spec
from distill.pipeline.training_plan import Role
from distill.results import long
from distill.results.long import BENCHMARKS, TRAINING

if TYPE_CHECKING:
    from distill.generation.stage import Scored

# A set's responses to a value: tokens for length, otherwise 0 to 100; None where what was kept does not tell.
METRICS: dict[str, Callable[[Sequence[Scored]], float | None]] = {
    "rouge_l": lambda rows: _mean(row.rouge_l for row in rows),
    "length": lambda rows: _mean(row.tokens for row in rows),
    "eos_rate": lambda rows: _mean(100.0 * row.ended for row in rows),
    "truncation_rate": lambda rows: _mean(100.0 * (not row.ended) for row in rows),
    "exact_match": lambda rows: _mean(row.exact_match for row in rows),
    **{f"distinct_{n}": lambda rows, n=n: distinct([row.text for row in rows], n) for n in (1, 2, 3)},  # type: ignore[misc]
}
OF_TOPIC = ":"  # rouge_l:closed_qa is ROUGE-L over a set's responses of that topic


def _mean(values: Iterable[float | None]) -> float | None:
    listed = [v for v in values if v is not None]
    return sum(listed) / len(listed) if listed else None


@dataclass
class Row:
    """One row of a table: its label, its config, and what its values are measured on."""

    label: str
    config: Config
    role: Role = "student"
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = Plan(self.config)

    @property
    def run(self) -> str:
        """Hash of everything that the values depend on but the generation seed."""
        return self.plan.run_key(self.role)


def decode_name(decode: EvalConfig) -> str:
    """The decoding settings in a few words."""
    banned = f" no-repeat={decode.no_repeat_ngram_size}" if decode.no_repeat_ngram_size else ""
    if not decode.do_sample:
        how = "greedy" if decode.num_beams == 1 else f"beams={decode.num_beams}"
        return f"{how}{banned} max={decode.max_new_tokens}"
    extra = (f" p={decode.top_p:g}" if decode.top_p < 1 else "") + (f" k={decode.top_k}" if decode.top_k else "")
    return f"sample T={decode.temperature:g}{extra}{banned} max={decode.max_new_tokens}"


def value_lines(
    row: Row,
    table: str,
    scored: dict[tuple[str, int], list[Scored]],
    seeds: Sequence[int],
    benchmarks: Sequence[Benchmark],
) -> list[dict[str, Any]]:
    """All that is known of a row now: of its texts by set and seed, of its training, and of its model.

    Args:
        scored: responses by set and generation seed.
        seeds: the generation seeds that what has none stands under.
    """
    config = row.config
    common = {
        "table": table,
        "row": row.label,
        "preset": config.preset.name,
        "run": row.run,
        "train_seed": row.plan.seed(row.role),
        "decode": decode_name(config.eval),
        "engine": config.eval.engine,
    }
    once = [*_cost(row), *_agreement(row), *_exposure(row), *_benchmarked(row, benchmarks)]
    # Under every seed, so that it is there whichever seeds are asked for
    found = [(*at, seed, value, n, commit) for *at, value, n, commit in once for seed in seeds]
    for (name, seed), rows in scored.items():
        dataset, written = row.plan.sets[name], row.plan.evaluation(row.role, row.plan.sets[name], seed)
        topics = {e.id: e.topic if dataset.topics else "" for e in dataset.examples}
        commit = row.plan.store.manifest(written)["commit"]  # that wrote the texts, whoever measures them
        for metric, value, n in [*_values(rows, topics), *_meaning(row, name, seed)]:
            found.append((dataset.title, name, metric, seed, value, n, commit))
    names = ("column", "dataset", "metric", "seed", "value", "n", "commit")
    return [{**common, **dict(zip(names, one, strict=True)), "value": repr(one[4])} for one in found]


# Column, data set, metric, value, number and commit of a value without a seed
Once = tuple[str, str, str, float, int, str]


def _agreement(row: Row) -> Iterator[Once]:
    """Top-1 agreement (0 to 100) and both KLs (nats) with the teacher, set by set."""
    plan = row.plan
    for name, dataset in plan.sets.items() if row.role == "student" else ():
        if plan.store.has(plan.agreement(dataset)):
            told = plan.store.manifest(plan.agreement(dataset))
            for metric in long.AGREEMENTS:
                yield (
                    dataset.title,
                    name,
                    metric,
                    told[metric.removeprefix("agreement_")],
                    told["positions"],
                    told["commit"],
                )


def _exposure(row: Row) -> Iterator[Once]:
    """Exposure bias by length, in percent, set by set."""
    plan = row.plan
    for name, dataset in plan.sets.items() if row.role == "student" else ():
        if plan.store.has(plan.exposure(dataset)):
            told = plan.store.manifest(plan.exposure(dataset))
            for length, value in told["exaccerr"].items():
                yield dataset.title, name, f"{long.EXPOSURE}{length}", value, told["rows"], told["commit"]


def _benchmarked(row: Row, benchmarks: Sequence[Benchmark]) -> Iterator[Once]:
    """What lm-eval found, in percent.

    Raises:
        UserError: a task has no metric of the name that is asked for.
    """
    for one in benchmarks:
        told = row.plan.store.manifest(row.plan.benchmark(row.role, one.task, one.shots))
        if one.measure not in told["metrics"]:
            raise UserError(f"{one.metric}: {one.task} measures {', '.join(told['metrics'])}")
        name, value = one.named(row.config.eval.benchmarks), told["metrics"][one.measure]
        yield one.task, BENCHMARKS, name, value, told["rows"], told["commit"]


def _meaning(row: Row, name: str, seed: int) -> Iterator[tuple[str, float, int]]:
    """BERTScore of a set's responses of one seed, where it was asked for."""
    plan = row.plan
    if plan.config.eval.bertscore.encoder is None:
        return
    spec = plan.bertscore(plan.evaluation(row.role, plan.sets[name], seed))
    if plan.store.has(spec):
        told = plan.store.manifest(spec)
        yield metric_name(plan.config.eval.bertscore), told["bertscore"], told["rows"]


def _cost(row: Row) -> Iterator[Once]:
    """What the row's own training cost on the machine that its manifest names.

    `peak_gb`: the most that the process held meanwhile; `minutes`: of its steps, and of what is done once for them, the
    teacher's stored signal and its answers; `seconds_per_sample`: of its steps alone.
    """
    plan, trained = row.plan, row.plan.model(row.role)
    if not isinstance(trained, Spec) or not plan.store.has(trained):
        return
    told = plan.store.manifest(trained)
    if told.get("peak_bytes") is None or told.get("seconds_per_step") is None:
        say(f"{row.label}: its training's cost was not measured (an earlier version, or resumed at its end)")
        return
    seconds = told["seconds_per_step"] * told["steps"]
    before = [s for s in plan.specs(row.role) if s.stage in ("signal", "answers") and plan.store.has(s)]
    once = sum(plan.store.manifest(spec)["seconds"] for spec in before)
    for metric, value in zip(
        long.COSTS, (told["peak_bytes"] / 1e9, (seconds + once) / 60, seconds / told["samples"]), strict=True
    ):
        yield "cost", TRAINING, metric, value, 1, told["commit"]


def _values(rows: Sequence[Scored], topics: Mapping[str, str]) -> Iterator[tuple[str, float, int]]:
    """Each metric's name, value and number of responses; ROUGE-L also by topic, where a set has topics."""
    for metric, of in METRICS.items():
        if (value := of(rows)) is not None:
            yield metric, value, len(rows)
    for topic in sorted({topics[row.id] for row in rows} - {""}):
        chosen = [row.rouge_l for row in rows if topics[row.id] == topic]
        yield f"rouge_l{OF_TOPIC}{topic}", sum(chosen) / len(chosen), len(chosen)
