"""The values of one row: found in the long file, or measured and added to it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from distill import hub
from distill.artifacts import Spec
from distill.config.schema import Config, EvalConfig
from distill.console import is_main_process, say
from distill.errors import UserError
from distill.evaluation.benchmarks import Benchmark
from distill.evaluation.bertscore import metric_name
from distill.evaluation.text import distinct
from distill.pipeline import Plan, Role
from distill.provenance import commit, hardware, versions
from distill.tables import long
from distill.tables.long import BENCHMARKS

if TYPE_CHECKING:
    from distill.evaluation.stage import Scored

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
TRAINING = "training"  # stands for the data set of what a row's training cost
KEPT_FIRST = ("rouge_l", "length", "eos_rate", "truncation_rate")


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


@dataclass(frozen=True)
class Files:
    """The long files of a table."""

    folder: Path
    name: str

    @property
    def values(self) -> Path:
        """One line a value."""
        return self.folder / ("long.csv" if self.name == "runs" else f"{self.name}_long.csv")

    @property
    def scores(self) -> Path:
        """One line a prompt."""
        return self.folder / ("scores.csv" if self.name == "runs" else f"{self.name}_scores.csv")

    @property
    def curves(self) -> Path:
        """One line a logged step."""
        return self.folder / ("curves.csv" if self.name == "runs" else f"{self.name}_curves.csv")


def decode_name(decode: EvalConfig) -> str:
    """The decoding settings in a few words."""
    banned = f" no-repeat={decode.no_repeat_ngram_size}" if decode.no_repeat_ngram_size else ""
    if not decode.do_sample:
        how = "greedy" if decode.num_beams == 1 else f"beams={decode.num_beams}"
        return f"{how}{banned} max={decode.max_new_tokens}"
    extra = (f" p={decode.top_p:g}" if decode.top_p < 1 else "") + (f" k={decode.top_k}" if decode.top_k else "")
    return f"sample T={decode.temperature:g}{extra}{banned} max={decode.max_new_tokens}"


def seeds_name(seeds: list[int]) -> str:
    """The generation seeds that a prompt's mean is over."""
    return " ".join(map(str, seeds))


def measure(
    row: Row, files: Files, texts: bool = True, benchmarks: Sequence[Benchmark] = ()
) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """The row's lines of the long file, measured and added first where they are missing.

    Args:
        texts: whether responses are written and scored; without them the row is trained, and its cost told.
        benchmarks: what else its model is tried on.

    Returns:
        The lines, and for a row that was measured now what the manifest shall tell of it.
    """
    row.plan.check_data(texts)
    lines = _found(row, files)
    complete = _complete_seeds(row, lines, texts, [one.named(row.config.eval.benchmarks) for one in benchmarks])
    missing = [s for s in row.config.seed if s not in complete]
    if missing and texts and not benchmarks and set(missing) <= _complete_texts(row, lines):
        gone = [s for s in missing if not _kept_texts(row, s)]
        if gone:  # what was measured of them stands; they are not written again for a metric that came later
            say(f"{row.label}: its texts are no longer in {row.config.paths.store}, so BERTScore is left out")
        missing = [s for s in missing if s not in gone]
    if not missing:
        say(f"{row.label}: found finished in {files.values} (run {row.run})")
        if is_main_process():  # a stop may have come between values and these
            _add_kept(row, files, texts)
        return lines, None
    from distill.measures import run_benchmarks
    from distill.stages import Stages

    stages, scored = Stages(row.plan), {}
    if texts:
        scored = stages.evaluate(row.role, missing)
    else:
        stages.made(row.role)
    run_benchmarks(stages, row.role, benchmarks)
    if is_main_process():
        long.append(
            files.values, _value_lines(row, files.name, scored, missing, benchmarks), long.VALUES, long.VALUE_KEY
        )
        _add_kept(row, files, texts)
    return _found(row, files), told(row, benchmarks)


def _add_kept(row: Row, files: Files, texts: bool) -> None:
    """Scores by prompt and training curves, as far as their artifacts are there."""
    if texts:
        _add_scores(row, files)
    _add_curves(row, files)


def _found(row: Row, files: Files) -> pd.DataFrame:
    frame = long.read(files.values, long.VALUES)
    frame = frame[(frame["run"] == row.run) & (frame["row"] == row.label) & frame["seed"].isin(row.config.seed)]
    return frame.reset_index(drop=True)


def _complete_texts(row: Row, lines: pd.DataFrame) -> set[int]:
    """The seeds whose texts were scored on every set, whatever else is measured of texts by now."""
    lines = lines[lines["metric"].isin(KEPT_FIRST)].drop_duplicates(["dataset", "metric", "seed"])
    counts = lines.groupby("seed").size()
    whole = len(row.plan.sets) * len(KEPT_FIRST)
    return {int(seed) for seed, count in counts.items() if count == whole}  # type: ignore[call-overload]


def _kept_texts(row: Row, seed: int) -> bool:
    return all(row.plan.store.has(row.plan.evaluation(row.role, d, seed)) for d in row.plan.sets.values())


def needed(evaluation: EvalConfig) -> list[str]:
    """The metrics that a finished row has on every set; lines kept before there were more are finished rows."""
    scored = evaluation.bertscore
    return [*KEPT_FIRST, *([metric_name(scored)] if scored.encoder is not None else [])]


def _complete_seeds(row: Row, lines: pd.DataFrame, texts: bool, benchmarks: Sequence[str]) -> set[int]:
    answered = lines[(lines["dataset"] == BENCHMARKS) & lines["metric"].isin(benchmarks)].groupby("seed").size()
    tried = {int(seed) for seed in row.config.seed if answered.get(seed, 0) == len(set(benchmarks))}
    if not texts:
        trained = {int(seed) for seed in lines[lines["dataset"] == TRAINING]["seed"].unique()}
        return tried if benchmarks else trained
    wanted = needed(row.config.eval)
    lines = lines[lines["metric"].isin(wanted)]
    counts = lines.drop_duplicates(["dataset", "metric", "seed"]).groupby("seed").size()
    whole = len(row.plan.sets) * len(wanted)
    return tried & {int(seed) for seed, count in counts.items() if count == whole}  # type: ignore[call-overload]


def _value_lines(
    row: Row,
    table: str,
    scored: dict[tuple[str, int], list[Scored]],
    seeds: Sequence[int],
    benchmarks: Sequence[Benchmark],
) -> list[dict[str, Any]]:
    config = row.config
    common = {
        "table": table,
        "row": row.label,
        "preset": config.preset.name,
        "run": row.run,
        "train_seed": row.plan.seed(row.role),
        "decode": decode_name(config.eval),
        "engine": config.eval.engine,
        "commit": commit(),
    }
    once = [  # under every seed, so that it is there whichever seeds are asked for
        {**common, "column": column, "dataset": dataset, "metric": metric, "seed": seed, "value": repr(value), "n": n}
        for column, dataset, metric, value, n in [
            *_cost(row),
            *_agreement(row),
            *_exposure(row),
            *_benchmarked(row, benchmarks),
        ]
        for seed in seeds
    ]
    topics = {name: {e.id: e.topic for e in d.examples} for name, d in row.plan.sets.items()}
    return once + [
        {
            **common,
            "column": row.plan.sets[name].title,
            "dataset": name,
            "metric": metric,
            "seed": seed,
            "value": repr(value),
            "n": n,
        }
        for (name, seed), rows in scored.items()
        for metric, value, n in [*_values(rows, topics[name]), *_meaning(row, name, seed)]
    ]


Once = tuple[str, str, str, float, int]  # column, data set, metric, value and number of a value without a seed


def _agreement(row: Row) -> Iterator[Once]:
    """Top-1 agreement (0 to 100) and both KLs (nats) with the teacher, set by set."""
    plan = row.plan
    for name, dataset in plan.sets.items() if row.role == "student" else ():
        if plan.store.has(plan.agreement(dataset)):
            told = plan.store.manifest(plan.agreement(dataset))
            for metric in long.AGREEMENTS:
                yield dataset.title, name, metric, told[metric.removeprefix("agreement_")], told["positions"]


def _exposure(row: Row) -> Iterator[Once]:
    """Exposure bias by length, in percent, set by set."""
    plan = row.plan
    for name, dataset in plan.sets.items() if row.role == "student" else ():
        if plan.store.has(plan.exposure(dataset)):
            told = plan.store.manifest(plan.exposure(dataset))
            for length, value in told["exaccerr"].items():
                yield dataset.title, name, f"{long.EXPOSURE}{length}", value, told["rows"]


def _benchmarked(row: Row, benchmarks: Sequence[Benchmark]) -> Iterator[Once]:
    """What lm-eval found, in percent.

    Raises:
        UserError: a task has no metric of the name that is asked for.
    """
    for one in benchmarks:
        told = row.plan.store.manifest(row.plan.benchmark(row.role, one.task, one.shots))
        if one.measure not in told["metrics"]:
            raise UserError(f"{one.metric}: {one.task} measures {', '.join(told['metrics'])}")
        yield one.task, BENCHMARKS, one.named(row.config.eval.benchmarks), told["metrics"][one.measure], told["rows"]


def _meaning(row: Row, name: str, seed: int) -> Iterator[tuple[str, float, int]]:
    """BERTScore of a set's responses of one seed, where it is asked for."""
    plan = row.plan
    if plan.config.eval.bertscore.encoder is not None:
        told = plan.store.manifest(plan.bertscore(plan.evaluation(row.role, plan.sets[name], seed)))
        yield metric_name(plan.config.eval.bertscore), told["bertscore"], told["rows"]


def _cost(row: Row) -> Iterator[Once]:
    """What the row's own training cost on the machine that its manifest names.

    `peak_gb`: the most that the process held meanwhile; `minutes`: of its steps, and of storing the teacher's signal;
    `seconds_per_sample`: of its steps alone.
    """
    plan, trained = row.plan, row.plan.model(row.role)
    if not isinstance(trained, Spec) or not plan.store.has(trained):
        return
    told = plan.store.manifest(trained)
    if told.get("peak_bytes") is None or told.get("seconds_per_step") is None:
        say(f"{row.label}: its training's cost was not measured (an earlier version, or resumed at its end)")
        return
    seconds = told["seconds_per_step"] * told["steps"]
    stored = row.role == "student" and plan.signal in plan.specs(row.role)
    signal = plan.store.manifest(plan.signal)["seconds"] if stored and plan.store.has(plan.signal) else 0.0
    for metric, value in zip(
        long.COSTS, (told["peak_bytes"] / 1e9, (seconds + signal) / 60, seconds / told["samples"]), strict=True
    ):
        yield "cost", TRAINING, metric, value, 1


def _values(rows: Sequence[Scored], topics: Mapping[str, str]) -> Iterator[tuple[str, float, int]]:
    """Each metric's name, value and number of responses; ROUGE-L also by topic, where a set has topics."""
    for metric, of in METRICS.items():
        if (value := of(rows)) is not None:
            yield metric, value, len(rows)
    for topic in sorted({topics[row.id] for row in rows} - {""}):
        chosen = [row.rouge_l for row in rows if topics[row.id] == topic]
        yield f"rouge_l{OF_TOPIC}{topic}", sum(chosen) / len(chosen), len(chosen)


def _add_scores(row: Row, files: Files) -> None:
    """Each prompt's scores over the row's seeds, for paired tests; all seeds are read back from the store."""
    from distill.measures import SCORES
    from distill.stages import read_scored

    plan, seeds = row.plan, seeds_name(row.config.seed)
    mine = {"run": row.run, "seeds": seeds}
    present = long.read(files.scores, long.SCORES)
    present = present[(present[list(mine)] == pd.Series(mine)).all(axis=1)]
    written = [plan.evaluation(row.role, d, s) for d in plan.sets.values() for s in row.config.seed]
    if not all(plan.store.has(spec) for spec in written):
        return  # generations of an earlier seed are gone; the values stand without them
    meaning = row.config.eval.bertscore.encoder is not None
    meaning = meaning and all(plan.store.has(plan.bertscore(spec)) for spec in written)
    if len(present) and not meaning:
        return
    scored = read_scored(plan, row.role, row.config.seed)
    lines: list[tuple[str, str, float, float | None]] = []
    for (name, seed), rows in scored.items():
        values: list[float | None] = [None] * len(rows)
        if meaning:
            spec = plan.bertscore(plan.evaluation(row.role, plan.sets[name], seed))
            values = json.loads((plan.store.folder(spec) / SCORES).read_text())
        lines += [(name, one.id, one.rouge_l, value) for one, value in zip(rows, values, strict=True)]
    frame = pd.DataFrame(lines, columns=["dataset", "id", "rouge_l", "bertscore"]).astype({"bertscore": float})
    means = frame.groupby(["dataset", "id"], sort=False).mean().round(4).reset_index()
    if len(present) == len(means) and np.allclose(present["bertscore"], means["bertscore"], atol=1e-3):
        return  # else they are not there, or another encoder's
    new = means.assign(row=row.label, **mine).to_dict("records")
    long.append(files.scores, new, long.SCORES, long.SCORE_KEY, {"row": row.label, **mine})  # type: ignore[arg-type]


def _add_curves(row: Row, files: Files) -> None:
    """The training and validation curves of the row's stages that are not kept yet."""
    present = long.read(files.curves, long.CURVES)
    known = set(zip(present["run"], present["stage"], strict=True))
    lines: list[dict[str, Any]] = []
    for spec in row.plan.specs(row.role):
        curve = row.plan.store.folder(spec) / "curve.csv"
        if curve.is_file() and (row.run, spec.label) not in known:
            with curve.open(newline="") as file:
                lines += [
                    {
                        "row": row.label,
                        "run": row.run,
                        "train_seed": row.plan.stage_seed(spec),
                        "stage": spec.label,
                        **line,
                    }
                    for line in csv.DictReader(file)
                ]
    long.append(files.curves, lines, long.CURVES, long.CURVE_KEY)


def told(row: Row, benchmarks: Sequence[Benchmark] = ()) -> dict[str, Any]:
    """What a manifest tells of a measured row."""
    plan, config = row.plan, row.config
    tried = [plan.benchmark(row.role, one.task, one.shots).name for one in benchmarks]
    train, valid = plan.data
    stages = {}
    for spec in plan.specs(row.role):
        if plan.store.has(spec) and spec.stage not in ("evaluate", "bertscore", "agree", "exposure"):
            manifest = plan.store.manifest(spec)
            stages[spec.name] = {k: v for k, v in manifest.items() if k not in ("determinants", "versions", "label")}
    seconds = sum(
        plan.store.manifest(s)["seconds"] for s in plan.specs(row.role) if s.stage == "evaluate" and plan.store.has(s)
    )
    return {
        "label": row.label,
        "role": row.role,
        "run": row.run,
        "commit": commit(),
        "config": config.model_dump(mode="json"),
        "data": {
            "train": {"rows": len(train.examples), "hash": train.fingerprint, "note": train.note},
            "valid": {"rows": len(valid.examples), "hash": valid.fingerprint, "note": valid.note},
            **{name: {"rows": len(d.examples), "hash": d.fingerprint, "note": d.note} for name, d in plan.sets.items()},
        },
        "template": plan.template_hash(),
        "decoding": plan.decoding(),
        "hub": _hub_commits(row),
        "stages": stages,
        "evaluation_seconds": round(seconds, 1),
        "artifacts": [*(spec.name for spec in plan.specs(row.role)), *tried],
        "versions": versions(),
        "hardware": hardware(),
    }


def _hub_commits(row: Row) -> dict[str, str]:
    """The commits behind the hub revisions that a row used: a branch may move, and the run's key holds its name."""
    config, found = row.config, {}
    if config.model.source == "hub":
        for weights in (config.model.teacher, config.model.student):
            if weights.id is not None:
                name = f"{weights.id}@{weights.revision}"
                found[name] = hub.resolved(weights.id, "config.json", weights.revision, "model")
    if config.data.root is None and config.data.generator is None:
        for split in (config.data.train, config.data.valid, *config.data.eval.values()):
            if split.hub is not None and split.hub_file is not None:
                found[f"{split.hub}@{split.revision}"] = hub.resolved(
                    split.hub, split.hub_file, split.revision, "dataset"
                )
    return found
