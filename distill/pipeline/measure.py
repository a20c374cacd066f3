"""The values of one row: found in the long file, or measured and added to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill.base import hub
from distill.base.console import say
from distill.base.processes import is_main_process
from distill.base.provenance import commit, hardware, versions
from distill.config.evaluation import EvalConfig
from distill.evaluation.benchmarks import Benchmark
from distill.evaluation.bertscore import encoder_name, metric_name
from distill.pipeline.values import METRICS, Row, value_lines
from distill.results import long
from distill.results.long import BENCHMARKS, TRAINING

CURVE_LINES = 300  # training lines of a curve at most; the artifact's own file has them all
WRITTEN = (
    "label",
    "commit",
    "rows",
    "seconds",
    "peak_bytes",
    "ties",
    "overlong",
)  # what a manifest tells of written texts
KEPT_FIRST = ("rouge_l", "length", "eos_rate", "truncation_rate")


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
    if missing and texts and not benchmarks and set(missing) <= _seeds_with(row, lines, KEPT_FIRST):
        gone = [s for s in missing if not _kept_texts(row, s)]
        if gone:  # what was measured of them stands; they are not written again for a metric that came later
            say(f"{row.label}: its texts are no longer in {row.config.paths.store}, so BERTScore is left out")
        missing = [s for s in missing if s not in gone]
    if not missing:
        say(f"{row.label}: found finished in {files.values} (run {row.run})")
        if is_main_process():
            if texts:
                _add_later(row, files, lines)
            _add_kept(row, files, texts)  # a stop may have come between values and these
        return _found(row, files), None
    from distill.pipeline.measures import run_benchmarks
    from distill.pipeline.stages import Stages

    stages, scored = Stages(row.plan), {}
    if texts:
        scored = stages.evaluate(row.role, missing)
    else:
        stages.made(row.role)
    run_benchmarks(stages, row.role, benchmarks)
    if is_main_process():
        long.append(
            files.values, value_lines(row, files.name, scored, missing, benchmarks), long.VALUES, long.VALUE_KEY
        )
        _add_kept(row, files, texts)
    return _found(row, files), told(row, benchmarks)


def _add_later(row: Row, files: Files, lines: pd.DataFrame) -> None:
    """Values of the texts that came later than the row, where the texts are kept."""
    from distill.pipeline.stages import read_scored

    seeds = [s for s in row.config.seed if s not in _seeds_with(row, lines, list(METRICS)) and _kept_texts(row, s)]
    if seeds:
        scored = read_scored(row.plan, row.role, seeds)
        long.append(files.values, value_lines(row, files.name, scored, seeds, ()), long.VALUES, long.VALUE_KEY)


def _add_kept(row: Row, files: Files, texts: bool) -> None:
    """Scores by prompt and training curves, as far as their artifacts are there."""
    if texts:
        _add_scores(row, files)
    _add_curves(row, files)


def _found(row: Row, files: Files) -> pd.DataFrame:
    frame = long.read(files.values, long.VALUES)
    frame = frame[(frame["run"] == row.run) & (frame["row"] == row.label) & frame["seed"].isin(row.config.seed)]
    return frame.reset_index(drop=True)


def _seeds_with(row: Row, lines: pd.DataFrame, metrics: Sequence[str]) -> set[int]:
    """The seeds under which every set has all these metrics."""
    lines = lines[lines["metric"].isin(metrics)].drop_duplicates(["dataset", "metric", "seed"])
    counts, whole = lines.groupby("seed").size(), len(row.plan.sets) * len(metrics)
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
    return tried & _seeds_with(row, lines, needed(row.config.eval))


def _add_scores(row: Row, files: Files) -> None:
    """Each prompt's scores over the row's seeds, for paired tests; all seeds are read back from the store."""
    from distill.pipeline.measures import SCORES
    from distill.pipeline.stages import read_scored

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
    encoder = encoder_name(row.config.eval.bertscore) if meaning else ""
    if len(present) == len(means) and (present["encoder"].fillna("") == encoder).all():
        return  # else they are not there, or another encoder's
    new = means.assign(row=row.label, encoder=encoder, **mine).to_dict("records")
    long.append(files.scores, new, long.SCORES, long.SCORE_KEY, {"row": row.label, **mine})  # type: ignore[arg-type]


def _add_curves(row: Row, files: Files) -> None:
    """The training and validation curves of the row's stages that are not kept yet."""
    present = long.read(files.curves, long.CURVES)
    known = set(zip(present["run"], present["stage"], strict=True))
    lines: list[Any] = []
    for spec in row.plan.specs(row.role):
        curve = row.plan.store.folder(spec) / "curve.csv"
        if curve.is_file() and (row.run, spec.label) not in known:
            own: dict[str, Any] = {
                "row": row.label,
                "run": row.run,
                "train_seed": row.plan.stage_seed(spec),
                "stage": spec.label,
            }
            lines += _thinned(pd.read_csv(curve)).assign(**own).to_dict("records")
    long.append(files.curves, lines, long.CURVES, long.CURVE_KEY)


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve whose training lines, where they are many, are means over steps beside each other; validations stay."""
    steps = curve[curve["loss"].notna()]
    size = -(-len(steps) // CURVE_LINES)
    if size <= 1:
        return curve
    blocks = steps.groupby(np.arange(len(steps)) // size)
    means = blocks.mean().assign(**{name: blocks[name].last() for name in ("step", "epoch", "learning_rate")})
    return pd.concat([means.astype({"step": int}), curve[curve["loss"].isna()]]).sort_values("step", kind="stable")


def told(row: Row, benchmarks: Sequence[Benchmark] = ()) -> dict[str, Any]:
    """What a manifest tells of a measured row."""
    plan, config = row.plan, row.config
    tried = [plan.benchmark(row.role, one.task, one.shots).name for one in benchmarks]
    train, valid = plan.data
    stages = {}
    for spec in plan.specs(row.role):
        if plan.store.has(spec) and spec.stage not in ("evaluate", "bertscore", "agree", "exposure", "reading"):
            manifest = plan.store.manifest(spec)
            stages[spec.name] = {k: v for k, v in manifest.items() if k not in ("determinants", "versions", "label")}
    written = [plan.store.manifest(s) for s in plan.specs(row.role) if s.stage == "evaluate" and plan.store.has(s)]
    texts = [{k: one[k] for k in WRITTEN if k in one} for one in written]
    return {
        "label": row.label,
        "role": row.role,
        "run": row.run,
        "commit": commit(),
        "config": config.model_dump(mode="json"),
        "data": {
            name: {"rows": len(d.examples), "hash": d.fingerprint, "note": d.note}
            | ({"counted": d.counted, "papers": d.papers} if d.counted is not None else {})
            for name, d in {"train": train, "valid": valid, **plan.sets}.items()
        },
        "template": plan.template_hash(),
        "decoding": plan.decoding(),
        "hub": _hub_commits(row),
        "stages": stages,
        "evaluations": texts,
        "evaluation_seconds": round(sum(one["seconds"] for one in written), 1),
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
