"""What a run's folder tells beside its facts: scores by prompt, curves, a few texts, and what ran."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill.base import hub
from distill.base.files import relative_to
from distill.base.provenance import commit, hardware, versions
from distill.data.templates import render
from distill.evaluation.bertscore import metric_name
from distill.evaluation.responses import read_responses
from distill.pipeline.nodes import Node
from distill.pipeline.rows import Row, decode_name, run_label
from distill.pipeline.stages.scoring import SCORES
from distill.results.manifest import set_descriptions
from distill.results.runs import SCORE_KEY
from distill.results.table import seeds_name

CURVE_LINES = 300  # training lines of a curve at most; the artifact's own file has them all
SAMPLES = 12  # prompts of each set whose texts are kept
# What a run tells of the stages behind it, and of written texts
NOT_TOLD = ("determinants", "versions", "label")
MEASURED_STAGES = ("evaluate", "bertscore", "agree", "exposure", "reading", "benchmark")
WRITTEN = ("label", "commit", "rows", "seconds", "peak_bytes", "ties", "overlong")


def scores_by_prompt(row: Row) -> pd.DataFrame | None:
    """Each prompt's mean scores over the row's generation seeds, for paired tests; None where the run has them, or the
    texts are not all in the store."""
    plan, seeds = row.plan, list(row.config.seed)
    wanted = metric_name(row.config.eval.bertscore) if row.config.eval.bertscore.encoder is not None else None
    present = row.folder.scores()
    present = present[present["seeds"] == seeds_name(seeds)]
    frames = []
    for dataset in plan.sets.values():
        nodes = [plan.evaluation(row.role, dataset, seed) for seed in seeds]
        if not all(plan.store.has(node) for node in nodes):
            continue
        meanings = [plan.bertscore(row.role, dataset, seed) for seed in seeds] if wanted else []
        meaning = wanted if meanings and all(plan.store.has(node) for node in meanings) else None
        own = present[(present["dataset"] == dataset.name) & (present["data"] == dataset.fingerprint)]
        if len(own) and (meaning is None or (meaning in own.columns and own[meaning].notna().all())):
            continue
        responses = [read_responses(plan.store.folder(node)) for node in nodes]
        lines = pd.DataFrame([(r.id, r.rouge_l) for several in responses for r in several], columns=["id", "rouge_l"])
        if meaning is not None:
            values = [json.loads((plan.store.folder(node) / SCORES).read_text()) for node in meanings]
            lines[meaning] = [value for several in values for value in several]
        means = lines.groupby("id", sort=False).mean().round(4).reset_index()
        topics = {e.id: e.topic for e in dataset.examples}
        means = means.assign(
            dataset=dataset.name, data=dataset.fingerprint, topic=means["id"].map(topics), seeds=seeds_name(seeds)
        )
        frames.append(means)
    if not frames:
        return None
    every = pd.concat(frames, ignore_index=True)
    return every[[*SCORE_KEY, *(c for c in every.columns if c not in SCORE_KEY)]]


def curves(row: Row) -> pd.DataFrame | None:
    """The training and validation curves of the stages behind a row; None where an artifact of them is gone."""
    frames = []
    for node in trainings(row):
        path = row.plan.store.folder(node) / "curve.csv"
        if not path.is_file():
            return None
        curve = thinned(pd.read_csv(path))
        curve.insert(0, "stage", node.label)
        curve.insert(1, "train_seed", row.plan.seed("student" if node == row.plan.student else "teacher"))
        frames.append(curve)
    return pd.concat(frames, ignore_index=True) if frames else None


def trainings(row: Row) -> list[Node]:
    """The trainings behind a row, its own last."""
    plan = row.plan
    sources = [plan.teacher] if row.role == "teacher" or plan.distils else []
    if row.role == "student":
        sources += [plan.start, plan.student]
    return [source for source in dict.fromkeys(sources) if isinstance(source, Node) and source.stage == "train"]


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve whose training lines, where they are many, are means over steps beside each other; validations stay."""
    steps = curve[curve["loss"].notna()]
    size = -(-len(steps) // CURVE_LINES)
    if size <= 1:
        return curve
    blocks = steps.groupby(np.arange(len(steps)) // size)
    means = blocks.mean().assign(**{name: blocks[name].last() for name in ("step", "epoch", "learning_rate")})
    return pd.concat([means.astype({"step": int}), curve[curve["loss"].isna()]]).sort_values("step", kind="stable")


def samples(row: Row) -> list[dict[str, Any]]:
    """Of each set the prompts with the smallest hash of their example id, with the first seed's responses."""
    plan, seed = row.plan, row.config.seed[0]
    lines = []
    for dataset in plan.sets.values():
        node = plan.evaluation(row.role, dataset, seed)
        if not plan.store.has(node):
            continue
        texts = {r.id: r.text for r in read_responses(plan.store.folder(node))}
        order = sorted(dataset.examples, key=lambda e: hashlib.sha256(e.id.encode()).hexdigest())
        for example in [e for e in order if e.id in texts][:SAMPLES]:
            prompt = render(row.config.data.template, example.instruction, example.input)
            one = {"dataset": dataset.name, "id": example.id, "seed": seed, "prompt": prompt}
            lines.append({**one, "references": list(example.references), "text": texts[example.id]})
    return lines


def description(row: Row, texts: bool, artifacts: Sequence[str], seconds: float) -> dict[str, Any]:
    """What `run.json` tells: what ran, on what, over which data, and which artifacts it needed."""
    plan, config = row.plan, row.config
    train, valid = plan.data
    stages, written = {}, []
    for node in _behind(row, texts):
        if not plan.store.has(node):
            continue
        manifest = plan.store.manifest(node)
        if node.stage == "evaluate":
            written.append({k: manifest[k] for k in WRITTEN if k in manifest})
        elif node.stage not in MEASURED_STAGES:
            stages[node.name] = {k: v for k, v in manifest.items() if k not in NOT_TOLD}
    own = plan.model(row.role)
    return {
        "run": row.run,
        "model": config.model.name,
        "label": run_label(config, row.role),
        "role": row.role,
        "stage": own.label if isinstance(own, Node) else "",
        "preset": config.preset.name,
        "train_seed": plan.seed(row.role),
        "shared_seed": config.train.shared_seed,
        "decode": decode_name(config.eval),
        "engine": config.eval.engine,
        "commit": commit(),
        "config": shareable(config.model_dump(mode="json"), Path.cwd()),
        "data": set_descriptions({"train": train, "valid": valid, **(plan.sets if texts else {})}),
        "template": plan.template_hash(),
        "decoding": plan.decoding(),
        "hub": _hub_commits(row),
        "stages": stages,
        "evaluations": written,
        "artifacts": list(artifacts),
        "versions": versions(),
        "hardware": hardware(),
        "wall_seconds": seconds,
    }


def _behind(row: Row, texts: bool) -> list[Node]:
    """The artifacts that a run tells of, from base weights to evaluations."""
    plan = row.plan
    chain = [plan.base("teacher"), plan.teacher] if row.role == "teacher" or plan.distils else []
    if row.role == "student":
        chain += [plan.base("student"), plan.start, plan.student]
        chain += [plan.signal] if plan.stores_signal else []
        chain += [plan.answers] if plan.config.sampler.kind.asks_teacher else []
    sets = plan.sets.values() if texts else ()
    chain += [plan.evaluation(row.role, dataset, seed) for dataset in sets for seed in plan.config.seed]
    return [source for source in dict.fromkeys(chain) if isinstance(source, Node)]


def shareable(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """A dumped config with paths as shared files may name them; of which sets and seeds it was is left out, since a run
    is of all."""
    result = {key: value for key, value in config.items() if key != "seed"}
    result["eval"] = {key: value for key, value in config["eval"].items() if key != "sets"}
    result["paths"] = {key: relative_to(value, root) for key, value in config["paths"].items()}
    data = dict(config["data"])
    data["root"] = relative_to(data["root"], root) if data["root"] else None
    result["data"] = data
    return result


def _hub_commits(row: Row) -> dict[str, str]:
    """The commits behind the hub revisions that a row used: a branch may move, and the run's key holds its name."""
    config, commits = row.config, {}
    if config.model.source == "hub":
        for weights in (config.model.teacher, config.model.student):
            if weights.id is not None:
                name = f"{weights.id}@{weights.revision}"
                commits[name] = hub.resolved(weights.id, "config.json", weights.revision, "model")
    if config.data.root is None and config.data.generator is None:
        for split in (config.data.train, config.data.valid, *config.data.eval.values()):
            if split.hub is not None and split.hub_file is not None:
                name = f"{split.hub}@{split.revision}"
                commits[name] = hub.resolved(split.hub, split.hub_file, split.revision, "dataset")
    return commits
