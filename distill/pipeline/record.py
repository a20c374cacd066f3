"""The contents of a run's folder besides its facts: scores by prompt, curves, sample responses and `run.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from distill.models.folders import is_checkpoint
from distill.pipeline.keys import checkpoint_identity, identity
from distill.pipeline.nodes import Node
from distill.pipeline.rows import Row, decode_name, run_label
from distill.pipeline.stages.scoring import SCORES
from distill.pipeline.store import FILES
from distill.results.manifest import set_descriptions
from distill.results.metrics import rouge_name
from distill.results.runs import SCORE_KEY
from distill.results.table import seeds_name

CURVE_LINES = 300  # the most training lines in a run's curve; the artifact's `curve.csv` has all of them
SAMPLES = 12  # prompts of each set whose responses are in the run's folder
# `run.json` has the manifests of the stages that made the model, without the keys NOT_RECORDED, and of evaluations the
# keys EVALUATION_KEYS only.
NOT_RECORDED = ("determinants", "versions", "label", FILES)
MEASURED_STAGES = ("evaluate", "bertscore", "agree", "exposure", "reading", "benchmark")
EVALUATION_KEYS = ("label", "commit", "rows", "seconds", "peak_bytes", "ties", "overlong")


def scores_by_prompt(row: Row) -> pd.DataFrame | None:
    """Each prompt's mean scores over the row's generation seeds, for paired tests.

    Sets whose scores the run already has, or whose responses are not all in the store, are left out. None if no set is
    left.
    """
    plan, seeds, rouge = row.plan, list(row.config.seed), rouge_name(row.config.eval.rouge_tokenizer)
    bertscore = metric_name(row.config.eval.bertscore) if row.config.eval.bertscore.encoder is not None else None
    run_scores = row.folder.scores()
    run_scores = run_scores[run_scores["seeds"] == seeds_name(seeds)]
    frames = []
    for dataset in plan.sets.values():
        nodes = [plan.evaluation(row.role, dataset, seed) for seed in seeds]
        if not all(plan.store.has(node) for node in nodes):
            continue
        bertscores = [plan.bertscore(row.role, dataset, seed) for seed in seeds] if bertscore else []
        column = bertscore if bertscores and all(plan.store.has(node) for node in bertscores) else None
        of_set = run_scores[(run_scores["dataset"] == dataset.name) & (run_scores["data"] == dataset.fingerprint)]
        there = [name in of_set.columns and of_set[name].notna().all() for name in (rouge, column) if name is not None]
        if len(of_set) and all(there):
            continue
        responses = [read_responses(plan.store.folder(node)) for node in nodes]
        scores = pd.DataFrame([(r.id, r.rouge_l) for of_seed in responses for r in of_seed], columns=["id", rouge])
        if column is not None:
            values = [json.loads((plan.store.folder(node) / SCORES).read_text()) for node in bertscores]
            scores[column] = [value for of_seed in values for value in of_seed]
        means = scores.groupby("id", sort=False).mean().round(4).reset_index()
        topics = {e.id: e.topic for e in dataset.examples}
        means = means.assign(
            dataset=dataset.name, data=dataset.fingerprint, topic=means["id"].map(topics), seeds=seeds_name(seeds)
        )
        frames.append(means)
    if not frames:
        return None
    all_sets = pd.concat(frames, ignore_index=True)
    return all_sets[[*SCORE_KEY, *(c for c in all_sets.columns if c not in SCORE_KEY)]]


def curves(row: Row) -> pd.DataFrame | None:
    """The training and validation curves of a row's trainings; None if there is none or one is not in the store."""
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
    """The trainings that a row's model depends on, in their order; the last one is the model's own."""
    plan = row.plan
    sources = [plan.teacher] if row.role == "teacher" or plan.distils else []
    if row.role == "student":
        sources += [plan.start, plan.student]
    return [source for source in dict.fromkeys(sources) if isinstance(source, Node) and source.stage == "train"]


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve with at most `CURVE_LINES` training lines, each the mean of neighbouring steps. All validations stay."""
    steps = curve[curve["loss"].notna()]
    size = -(-len(steps) // CURVE_LINES)
    if size <= 1:
        return curve
    blocks = steps.groupby(np.arange(len(steps)) // size)
    means = blocks.mean().assign(**{name: blocks[name].last() for name in ("step", "epoch", "learning_rate")})
    return pd.concat([means.astype({"step": int}), curve[curve["loss"].isna()]]).sort_values("step", kind="stable")


def samples(row: Row) -> list[dict[str, Any]]:
    """The first seed's responses to a few prompts of each set, with the prompts and references.

    The prompts are those whose example ids have the smallest hashes, so all runs have the same ones.
    """
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
            key = {"dataset": dataset.name, "id": example.id, "seed": seed, "prompt": prompt}
            lines.append({**key, "references": list(example.references), "text": texts[example.id]})
    return lines


def description(row: Row, texts: bool, artifacts: Sequence[str], seconds: float) -> dict[str, Any]:
    """The content of `run.json`: the config, data, stages, versions and hardware of a run, and its artifacts.

    Args:
        texts: whether responses were generated.
        artifacts: the names of the artifacts that the run needs, which `prune` does not remove.
        seconds: how long the artifacts took.
    """
    plan, config = row.plan, row.config
    train, valid = plan.data
    stages, evaluations = {}, []
    for node in _recorded_nodes(row, texts):
        if not plan.store.has(node):
            continue
        manifest = plan.store.manifest(node)
        if node.stage == "evaluate":
            evaluations.append({k: manifest[k] for k in EVALUATION_KEYS if k in manifest})
        elif node.stage not in MEASURED_STAGES:
            stages[node.name] = {k: v for k, v in manifest.items() if k not in NOT_RECORDED}
    model = plan.model(row.role)
    return {
        "run": row.run,
        "model": config.model.name,
        "label": run_label(config, row.role),
        "role": row.role,
        "stage": model.label if isinstance(model, Node) else "",
        "preset": config.preset.name,
        "schedule": config.stage,
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
        "evaluations": evaluations,
        "artifacts": list(artifacts),
        "versions": versions(),
        "hardware": hardware(),
        "wall_seconds": seconds,
    }


def _recorded_nodes(row: Row, texts: bool) -> list[Node]:
    """The artifacts whose manifests are in `run.json`, from base weights to evaluations."""
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
    """A dumped config for a file that is shared, without folders of this machine.

    A path is relative to `root`, or only a name; that of a checkpoint, an encoder or benchmark tasks has the beginning
    of its content's hash, so that two of one name are told apart. Generation seeds and selected sets are left out: a
    run has the facts of all seeds and sets that were ever measured.
    """
    result = {key: value for key, value in config.items() if key != "seed"}
    result["eval"] = {key: value for key, value in config["eval"].items() if key != "sets"}
    evaluation = result["eval"]
    hashed = [(config["model"][role], key) for role in ("teacher", "student") for key in ("id", "path")]
    hashed += [(evaluation["bertscore"], "encoder"), (evaluation["benchmarks"], "tasks")]
    names = {text: _name_with_hash(text, root) for section, key in hashed if _is_own_folder(text := section[key])}
    shared: dict[str, Any] = _without_paths(result, root, names)
    return shared


def _is_own_folder(text: str | None) -> bool:
    return text is not None and Path(text).expanduser().is_absolute() and Path(text).expanduser().is_dir()


def _name_with_hash(text: str, root: Path) -> str:
    """A folder's path relative to `root`, or its name with the beginning of the hash of what determines it."""
    folder = Path(text).expanduser()
    if folder.is_relative_to(root):
        return str(folder.relative_to(root))
    content = checkpoint_identity(text) if is_checkpoint(folder) else identity(text)
    return f"{folder.name}-{content[:6]}"


def _without_paths(value: Any, root: Path, names: Mapping[str, str]) -> Any:
    """A JSON value whose absolute paths are those of `names`, relative to `root`, or only a name."""
    if isinstance(value, dict):
        return {key: _without_paths(x, root, names) for key, x in value.items()}
    if isinstance(value, list):
        return [_without_paths(x, root, names) for x in value]
    if not isinstance(value, str) or not value.startswith(("/", "~")) or "\n" in value:
        return value
    return names[value] if value in names else relative_to(value, root)


def _hub_commits(row: Row) -> dict[str, str]:
    """The commits of the hub revisions that a row used, by `id@revision`.

    The run's key has only the revision's name, and a branch may move to another commit.
    """
    config, commits = row.config, {}
    if config.model.source == "hub":
        for weights in (config.model.teacher, config.model.student):
            if weights.id is not None and not Path(weights.id).expanduser().is_dir():
                name = f"{weights.id}@{weights.revision}"
                commits[name] = hub.resolved(weights.id, "config.json", weights.revision, "model")
    if config.data.root is None and config.data.generator is None:
        for split in (config.data.train, config.data.valid, *config.data.eval.values()):
            if split.hub is not None and split.hub_file is not None:
                name = f"{split.hub}@{split.revision}"
                commits[name] = hub.resolved(split.hub, split.hub_file, split.revision, "dataset")
    return commits
