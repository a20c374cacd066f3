"""Measuring one row: the facts that its run's folder lacks are made and added to it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.hub import check_tracker_address
from distill.base.processes import from_main_process, is_main_process
from distill.evaluation.benchmarks import Benchmark
from distill.evaluation.responses import read_responses
from distill.models.precision import check_precision
from distill.pipeline import checks
from distill.pipeline.leases import lease
from distill.pipeline.nodes import ExternalWeights, Node, available, ensure, facts_of, upcoming
from distill.pipeline.record import curves, description, samples, scores_by_prompt
from distill.pipeline.rows import Row
from distill.pipeline.stages.comparison import is_plain
from distill.results.metrics import (
    BENCHMARKS,
    ROUGE,
    TRAINING,
    VALIDATION,
    find,
    is_rouge,
    of_tokenizer,
    stage_metrics,
    without_teacher,
)
from distill.results.runs import FACT_KEY, Measured

FAMILIES = {"exposure": "exaccerr:", "corrections": "scrg:", "density": "density:"}  # stages with one family of metrics
Key = tuple[str, ...]  # a fact's data set, the hash of the set and the generation seed, as text


@dataclass(frozen=True)
class Measurements:
    """What is measured of a row. If nothing is set, the row's model is trained and the training's cost is measured.

    Attributes:
        texts: whether responses to the evaluation sets are generated and scored.
        benchmarks: the benchmarks of lm-eval that the row's model is evaluated on.
        training: metrics of the training itself, as (`training` or `validation`, metric).
        comparisons: whether a student's agreement with its teacher (`agree`), its exposure bias (`exposure`) and the
            teacher's corrections of its texts (`corrections`) must be measured. The first two are measured in any case
            if both models and their responses are in the store. So must be which classes its DAC-KL keeps (`density`).
    """

    texts: bool = True
    benchmarks: Sequence[Benchmark] = ()
    training: Sequence[tuple[str, str]] = ()
    comparisons: Collection[str] = ()


def measure(row: Row, needed: Measurements) -> bool:
    """Measure a row: make the artifacts of missing facts, and add the facts to the folder of its run.

    Returns:
        Whether facts were missing.

    Raises:
        UserError: the row cannot be measured until the user changes something. Finished artifacts stay in the store.
    """
    run_metrics, missing = check_row(row, needed)
    started, plan = time.time(), row.plan
    if not missing:
        say(f"{row.label}: found finished in {row.folder.folder}")
    with lease(plan.store.root, [node.name for node in _all_nodes(row, needed)]):
        if missing:
            for node in upcoming(plan.store, missing):
                if (estimate := node.maker.estimate()) is not None:
                    stage = "" if node.stage == "train" else f" {node.stage}"
                    say(f"to come: {node.label}{stage} {estimate.describe()}")
            ensure(plan.store, missing)
        compared = _compare_with_teacher(row, run_metrics) if needed.texts else False
        plan.session.release()
        if is_main_process():
            seconds = round(time.time() - started, 1) if missing or compared else 0.0
            _record(row, needed, run_metrics, seconds)
    return bool(missing) or compared


def check_row(row: Row, needed: Measurements) -> tuple[dict[Key, set[str]], list[Node]]:
    """Check everything that can be checked before the row's first artifact is made.

    Returns:
        The metrics that the row's run has, and the artifacts whose facts it lacks.

    Raises:
        UserError: data, an encoder, a chunker or a checkpoint is missing or wrong.
    """
    checks.check_data(row.plan, needed.texts)
    run_metrics = from_main_process(_metrics_of_run(row))
    _, missing = missing_nodes(row, needed, run_metrics)
    to_make = upcoming(row.plan.store, missing)
    if to_make and row.config.tracker.name == "wandb":
        check_tracker_address()
    if to_make and not row.config.debug.smoke:  # whose models are too small for the precision to matter
        check_precision(row.config.train.precision)
    checks.check_models(row.plan, to_make)
    return run_metrics, missing


def check_rows(rows: Sequence[Row], needed: Measurements, what: str = "row") -> None:
    """Check several rows (`check_row`) before the first one is measured.

    Raises:
        UserError: with every problem once, and the rows that have it if not all have.
    """
    labels: dict[str, list[str]] = {}  # by problem
    for row in rows:
        try:
            check_row(row, needed)
        except UserError as error:
            for problem in error.problems:
                labels.setdefault(problem, []).append(row.label)
    every = {row.label for row in rows}
    problems = [
        problem if every.issubset(having) else f"{what} {', '.join(dict.fromkeys(having))}: {problem}"
        for problem, having in labels.items()
    ]
    if problems:
        raise UserError(problems)


def missing_nodes(
    row: Row, needed: Measurements, run_metrics: dict[Key, set[str]] | None = None
) -> tuple[list[Node], list[Node]]:
    """The artifacts that `needed` asks for: those whose facts the row's run has, and those whose facts it lacks.

    Args:
        run_metrics: the metrics that the run already has; read from its folder by default.
    """
    run_metrics = _metrics_of_run(row) if run_metrics is None else run_metrics
    required = _required(row, needed)
    missing = [node for node in required if _is_missing(node, needed, run_metrics)]
    there = [node for node in required if node not in missing]
    return there, _without_deleted_responses(row, missing, run_metrics)


def _required(row: Row, needed: Measurements) -> list[Node]:
    """The artifacts whose facts `needed` asks for, in the order in which they are made."""
    plan, nodes = row.plan, []
    model = plan.model(row.role)
    if isinstance(model, Node) and (needed.training or not (needed.texts or needed.benchmarks)):
        nodes.append(model)
    if needed.texts:
        sets_and_seeds = [(dataset, seed) for dataset in plan.sets.values() for seed in plan.config.seed]
        nodes += [plan.evaluation(row.role, dataset, seed) for dataset, seed in sets_and_seeds]
        if plan.config.eval.bertscore.encoder is not None:
            nodes += [plan.bertscore(row.role, dataset, seed) for dataset, seed in sets_and_seeds]
    if "exposure" in needed.comparisons and not is_plain(plan.config.eval):
        raise UserError(
            f"{row.label}: exposure bias is a mean over texts that are drawn from the model's own distribution; set"
            " eval.do_sample=true with temperature, top_p, top_k and no_repeat_ngram_size at their defaults"
        )
    nodes += [node for node in _comparisons(row) if node.stage in needed.comparisons]
    nodes += [node for node in _asked_comparisons(row) if node.stage in needed.comparisons]
    return nodes + [plan.benchmark(row.role, benchmark) for benchmark in needed.benchmarks]


def _is_missing(node: Node, needed: Measurements, run_metrics: dict[Key, set[str]]) -> bool:
    """Whether the run lacks facts of this artifact that `needed` asks for."""
    if node.stage != "train":
        return not _has_facts(node, run_metrics)
    if not needed.training:
        return not run_metrics.get((TRAINING, "", ""))
    return any(metric not in run_metrics.get((dataset, "", ""), ()) for dataset, metric in needed.training)


def _all_nodes(row: Row, needed: Measurements) -> Iterator[Node]:
    """Every artifact that a row depends on, directly or through others."""
    plan = row.plan
    nodes = [*_required(row, needed), *_comparisons(row)]
    seen: set[Node] = set()

    def visit(node: Node | ExternalWeights) -> Iterator[Node]:
        if isinstance(node, Node) and node not in seen:
            seen.add(node)
            yield node
            for source in node.inputs:
                yield from visit(source)

    for node in [plan.model(row.role), *nodes]:
        yield from visit(node)


def _comparisons(row: Row) -> list[Node]:
    """The artifacts that compare a student with its teacher on each evaluation set; none for a teacher."""
    if row.role != "student":
        return []
    sets = row.plan.sets.values()
    return [node for dataset in sets for node in (row.plan.agreement(dataset), row.plan.exposure(dataset))]


def _asked_comparisons(row: Row) -> list[Node]:
    """The comparisons of a student with its teacher that only a column asks for; none for a teacher."""
    if row.role != "student":
        return []
    plan, sets = row.plan, row.plan.sets.values()
    densities = [plan.density(dataset) for dataset in sets] if plan.config.loss.name == "dac_kl" else []
    return [*(plan.corrections(dataset) for dataset in sets), *densities]


def _compare_with_teacher(row: Row, run_metrics: dict[Key, set[str]]) -> bool:
    """Measure a student's agreement and exposure bias where its run lacks them and all that they need is in the store.

    A student that was fine-tuned without a teacher is compared with the config's teacher if that was trained for other
    rows.

    Args:
        row: the row.
        run_metrics: the metrics that the run already has.

    Returns:
        Whether anything was measured.
    """
    plan, compared = row.plan, False
    if isinstance(plan.teacher, ExternalWeights) and not plan.distils:
        return False
    if not (available(plan.store, plan.teacher) and available(plan.store, plan.student)):
        return False
    for node in _comparisons(row):
        # A finished comparison is recorded without being made again
        if _has_facts(node, run_metrics) or plan.store.main_process_has(node):
            continue
        if node.stage == "exposure" and not _can_measure_exposure(row, node):
            continue
        try:
            ensure(plan.store, [node])
        except UserError as error:  # no row is short enough; the row's other facts are still valid
            say(f"{node.label}: {node.stage} was not measured ({error})")
            continue
        compared = True
    return compared


def _can_measure_exposure(row: Row, node: Node) -> bool:
    """Whether the responses were drawn from the models' own distributions and are in the store, with token ids."""
    evaluations = [source for source in node.inputs if isinstance(source, Node) and source.stage == "evaluate"]
    all_available = all([available(row.plan.store, evaluation) for evaluation in evaluations])
    return is_plain(row.config.eval) and all_available and all(_has_token_ids(row, e) for e in evaluations)


def _has_token_ids(row: Row, node: Node) -> bool:
    """Whether an evaluation's responses are stored with their token ids. Earlier versions stored the text only."""
    return all(response.token_ids is not None for response in read_responses(row.plan.store.folder(node)))


def _metrics_of_run(row: Row) -> dict[Key, set[str]]:
    """The names of the metrics that the row's run already has facts of, by (data set, hash, generation seed).

    The run's key covers how the model is trained and how it writes, not the comparisons that a column asks for: facts
    of one of an earlier version, whose artifact is another, are left out and replaced by new ones.
    """
    run_metrics: dict[Key, set[str]] = {}
    for dataset, data, metric, seed in row.folder.facts()[FACT_KEY].itertuples(index=False, name=None):
        run_metrics.setdefault((dataset, data, seed), set()).add(metric)
    asked = tuple(FAMILIES[stage] for stage in ("corrections", "density"))
    if any(metric.startswith(asked) for metrics in run_metrics.values() for metric in metrics):
        made_from = set(row.folder.description()["artifacts"])
        for node in _asked_comparisons(row):
            metrics = run_metrics.get(_fact_key(node), set())
            if node.name not in made_from:
                metrics -= {metric for metric in metrics if metric.startswith(FAMILIES[node.stage])}
    return run_metrics


def _fact_key(node: Node) -> Key:
    """The data set, its hash and the generation seed of a node's facts."""
    assert node.subject is not None
    return node.subject.dataset, node.subject.data, "" if node.subject.seed is None else str(node.subject.seed)


def _has_facts(node: Node, run_metrics: dict[Key, set[str]], every: bool = False) -> bool:
    """Whether a run has the facts of an artifact.

    Args:
        every: whether an evaluation needs all of its metrics, also those that were added to the project after the run
            was measured. If not, ROUGE-L is enough. Families of metrics are not required, since they may be empty.
    """
    subject = node.subject
    assert subject is not None
    measured = run_metrics.get(_fact_key(node), set())
    if node.stage == "train":
        measured = measured | run_metrics.get((VALIDATION, "", ""), set())
    if node.stage in ("train", "evaluate"):  # ROUGE-L with the run's tokenizer, by the name of the papers' one
        rouge = subject.details.get(ROUGE, ROUGE)
        measured = {x.replace(rouge, ROUGE, 1) for x in measured if not is_rouge(x) or of_tokenizer(x, rouge)}
    if node.stage == "evaluate" and not every:
        return ROUGE in measured
    if node.stage == "bertscore":
        return subject.details["metric"] in measured
    if node.stage == "benchmark":
        details = subject.details
        task, suffix = f"{details['task']}:", f":{details['shots']}{details['suffix']}"
        return any(name.startswith(task) and name.endswith(suffix) for name in measured)
    if node.stage in ("agree", *FAMILIES):
        names = (without_teacher(name, subject.details["teacher"]) for name in measured)
        measured = {name for name in names if name is not None}
    if node.stage in FAMILIES:
        return any(name.startswith(FAMILIES[node.stage]) for name in measured)
    return all(metric.name in measured for metric in stage_metrics(node.stage) if not metric.is_family)


def _without_deleted_responses(row: Row, missing: list[Node], run_metrics: dict[Key, set[str]]) -> list[Node]:
    """The missing artifacts without the BERTScores of responses that were scored and then removed from the store.

    To generate such responses again only for BERTScore would cost too much.
    """
    plan = row.plan
    without_responses = {
        node
        for node in missing
        if node.stage == "bertscore"
        and isinstance(evaluation := node.inputs[0], Node)
        and not plan.store.main_process_has(evaluation)
        and _has_facts(evaluation, run_metrics)
    }
    if without_responses:
        store = plan.config.paths.store
        say(f"{row.label}: the responses of this row are no longer in {store}, so BERTScore is left out")
    return [node for node in missing if node not in without_responses]


def _record(row: Row, needed: Measurements, run_metrics: dict[Key, set[str]], seconds: float) -> None:
    """Add to the run the facts of finished artifacts that it lacks, and its description, curves, scores and samples.

    Args:
        run_metrics: the metrics that the run already has.
        seconds: how long the row's artifacts took now; 0 if none was missing.
    """
    plan, model, asked = row.plan, row.plan.model(row.role), _asked_comparisons(row)
    nodes = [
        *_required(row, Measurements(needed.texts, needed.benchmarks)),
        *([*_comparisons(row), *asked] if needed.texts else []),
    ]
    nodes = list(dict.fromkeys([*([model] if isinstance(model, Node) else []), *nodes]))
    new = [node for node in nodes if plan.store.has(node) and not _has_facts(node, run_metrics, every=True)]
    facts, renewed = (
        [fact for node in new if (node in asked) is is_asked for fact in facts_of(plan.store, node)]
        for is_asked in (False, True)
    )
    scores = scores_by_prompt(row) if needed.texts else None
    if not facts and not renewed and scores is None and not seconds and row.folder.description():
        return
    names = [node.name for node in _all_nodes(row, needed)]
    measured = Measured(
        facts=facts,
        renewed=renewed,
        description=description(row, needed.texts, names, seconds),
        curve=curves(row),
        samples=samples(row) if needed.texts else (),
        **({"scores": scores} if scores is not None else {}),
    )
    row.folder.add(measured)


def measurements_for(columns: Sequence[tuple[str, str]]) -> Measurements:
    """The measurements that the values of these columns, as (data set, metric), are read from."""
    stages = {find(dataset, metric).stage for dataset, metric in columns}
    return Measurements(
        texts=any(dataset not in (TRAINING, VALIDATION, BENCHMARKS) for dataset, _ in columns),
        benchmarks=[Benchmark.parse(metric) for dataset, metric in columns if dataset == BENCHMARKS],
        training=[(dataset, metric) for dataset, metric in columns if dataset in (TRAINING, VALIDATION)],
        comparisons=stages & {"agree", *FAMILIES},
    )
