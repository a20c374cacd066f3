"""The facts of one row: found in its run's folder, or made and added to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.processes import from_main_process, is_main_process
from distill.evaluation.benchmarks import Benchmark
from distill.evaluation.responses import read_responses
from distill.pipeline import checks
from distill.pipeline.leases import lease
from distill.pipeline.nodes import Given, Node, available, ensure, facts_of, upcoming
from distill.pipeline.record import curves, description, samples, scores_by_prompt
from distill.pipeline.rows import Row
from distill.pipeline.stages.comparison import is_plain
from distill.results.metrics import BENCHMARKS, TRAINING, VALIDATION, stage_metrics
from distill.results.runs import FACT_KEY, Measured

Key = tuple[str, ...]  # data set, its hash, metric and seed of a fact, as text


@dataclass(frozen=True)
class Measurements:
    """What is asked of a row.

    Attributes:
        texts: whether responses are written and scored; without them the row is trained, and its cost measured.
        benchmarks: lm-eval's tasks that its model is tried on.
        training: metrics of the training itself, as (data set, metric).
    """

    texts: bool = True
    benchmarks: Sequence[Benchmark] = ()
    training: Sequence[tuple[str, str]] = ()


def measure(row: Row, needed: Measurements) -> bool:
    """See that a row's facts are in its run's folder; what is missing is made and added.

    Returns:
        Whether anything was made.

    Raises:
        UserError: something the user can mend stands in the way; what was finished before stays.
    """
    checks.check_data(row.plan, needed.texts)
    started, plan = time.time(), row.plan
    present = from_main_process(_present(row))
    lacking = [node for node in _required(row, needed) if _lacks(node, needed, present)]
    lacking = _without_gone_texts(row, lacking, present)
    if not lacking:
        say(f"{row.label}: found finished in {row.folder.folder}")
    with lease(plan.store.root, [node.name for node in _all_nodes(row, needed)]):
        if lacking:
            for node in upcoming(plan.store, lacking):
                if (needs := node.maker.estimate()) is not None:
                    say(f"to come: {node.label}{'' if node.stage == 'train' else f' {node.stage}'} {needs.describe()}")
            ensure(plan.store, lacking)
            if needed.texts and row.role == "student":
                _compare_with_teacher(row)
            plan.session.release()
        if is_main_process():
            _record(row, needed, present, round(time.time() - started, 1) if lacking else 0.0)
    return bool(lacking)


def _required(row: Row, needed: Measurements) -> list[Node]:
    """The artifacts whose facts a finished row has, in the order in which they are made."""
    plan, nodes = row.plan, []
    model = plan.model(row.role)
    if isinstance(model, Node) and (needed.training or not (needed.texts or needed.benchmarks)):
        nodes.append(model)
    if needed.texts:
        several = [(dataset, seed) for dataset in plan.sets.values() for seed in plan.config.seed]
        nodes += [plan.evaluation(row.role, dataset, seed) for dataset, seed in several]
        if plan.config.eval.bertscore.encoder is not None:
            nodes += [plan.bertscore(row.role, dataset, seed) for dataset, seed in several]
    return nodes + [plan.benchmark(row.role, one) for one in needed.benchmarks]


def _lacks(node: Node, needed: Measurements, present: dict[Key, set[str]]) -> bool:
    """Whether facts that are asked for are missing."""
    if node.stage != "train":
        return not _has(node, present)
    if not needed.training:
        return not present.get((TRAINING, "", ""))
    return any(metric not in present.get((dataset, "", ""), ()) for dataset, metric in needed.training)


def _all_nodes(row: Row, needed: Measurements) -> Iterator[Node]:
    """Every artifact behind a row."""
    plan = row.plan
    nodes = [*_required(row, needed), *_comparisons(row)]
    seen: set[Node] = set()

    def visit(node: Node | Given) -> Iterator[Node]:
        if isinstance(node, Node) and node not in seen:
            seen.add(node)
            yield node
            for source in node.inputs:
                yield from visit(source)

    for node in [plan.model(row.role), *nodes]:
        yield from visit(node)


def _comparisons(row: Row) -> list[Node]:
    """A student beside its teacher: made only where both are at hand."""
    if row.role != "student":
        return []
    sets = row.plan.sets.values()
    return [node for dataset in sets for node in (row.plan.agreement(dataset), row.plan.exposure(dataset))]


def _compare_with_teacher(row: Row) -> None:
    """Agreement and exposure bias on each set, where both models and their texts are at hand.

    A fine-tuned student is compared with a teacher that was trained here for other rows.
    """
    plan = row.plan
    teacher = plan.teacher
    if isinstance(teacher, Given) and not plan.distils:
        return
    if not (available(plan.store, teacher) and available(plan.store, plan.student)):
        return
    sets = list(plan.sets.values())
    for dataset in sets:
        try:
            ensure(plan.store, [plan.agreement(dataset)])
        except UserError as error:  # no row is short enough; what was written stands without it
            say(f"agreement with the teacher on {dataset.title}: not measured ({error})")
    for dataset in sets if is_plain(plan.config.eval) else ():
        both = [plan.evaluation(role, dataset, plan.config.seed[0]) for role in ("student", "teacher")]
        if all([available(plan.store, node) for node in both]) and all(_have_ids(row, node) for node in both):
            ensure(plan.store, [plan.exposure(dataset)])


def _have_ids(row: Row, node: Node) -> bool:
    """Whether responses were kept as token ids too; artifacts of before that were not."""
    return all(response.token_ids is not None for response in read_responses(row.plan.store.folder(node)))


def _present(row: Row) -> dict[Key, set[str]]:
    """The metrics that a run has by (data set, hash, seed)."""
    present: dict[Key, set[str]] = {}
    for dataset, data, metric, seed in row.folder.facts()[FACT_KEY].itertuples(index=False, name=None):
        present.setdefault((dataset, data, seed), set()).add(metric)
    return present


def _has(node: Node, present: dict[Key, set[str]], every: bool = False) -> bool:
    """Whether the facts of an artifact are there.

    Args:
        every: also the metrics that came after the run was measured; families aside, which may be empty.
    """
    subject = node.subject
    assert subject is not None
    seed = "" if subject.seed is None else str(subject.seed)
    measured_metrics = present.get((subject.dataset, subject.data, seed), set())
    if node.stage == "train":
        measured_metrics = measured_metrics | present.get((VALIDATION, "", ""), set())
    if node.stage == "evaluate" and not every:
        return "rouge_l" in measured_metrics
    if node.stage == "bertscore":
        return subject.details["metric"] in measured_metrics
    if node.stage == "benchmark":
        details = subject.details
        ends = f":{details['shots']}{details['suffix']}"
        return any(name.startswith(f"{details['task']}:") and name.endswith(ends) for name in measured_metrics)
    if node.stage == "exposure":
        return any(name.startswith("exaccerr:") for name in measured_metrics)
    return all(metric.name in measured_metrics for metric in stage_metrics(node.stage) if not metric.is_family)


def _without_gone_texts(row: Row, lacking: list[Node], present: dict[Key, set[str]]) -> list[Node]:
    """Leaves out what would need texts that are measured but no longer in the store: they are not written again for a
    metric that came later."""
    plan = row.plan
    gone = {
        node
        for node in lacking
        if node.stage == "bertscore"
        and isinstance(evaluation := node.inputs[0], Node)
        and not plan.store.agreed(evaluation)
        and _has(evaluation, present)
    }
    if gone:
        say(f"{row.label}: its texts are no longer in {plan.config.paths.store}, so BERTScore is left out")
    return [node for node in lacking if node not in gone]


def _record(row: Row, needed: Measurements, present: dict[Key, set[str]], seconds: float) -> None:
    """Add what finished artifacts tell and the run does not have yet."""
    plan, model = row.plan, row.plan.model(row.role)
    nodes = [
        *_required(row, Measurements(needed.texts, needed.benchmarks)),
        *(_comparisons(row) if needed.texts else []),
    ]
    nodes = list(dict.fromkeys([*([model] if isinstance(model, Node) else []), *nodes]))
    new = [node for node in nodes if plan.store.has(node) and not _has(node, present, every=True)]
    facts = [fact for node in new for fact in facts_of(plan.store, node)]
    scores = scores_by_prompt(row) if needed.texts else None
    if not facts and scores is None and not seconds and row.folder.description():
        return
    named = [node.name for node in _all_nodes(row, needed)]
    measured = Measured(
        facts=facts,
        description=description(row, needed.texts, named, seconds),
        curve=curves(row),
        samples=samples(row) if needed.texts else (),
        **({"scores": scores} if scores is not None else {}),
    )
    row.folder.add(measured)


def measurements_for(columns: Sequence[tuple[str, str]]) -> Measurements:
    """What columns, as (data set, metric), ask of a row."""
    return Measurements(
        texts=any(dataset not in (TRAINING, VALIDATION, BENCHMARKS) for dataset, _ in columns),
        benchmarks=[Benchmark.parse(metric) for dataset, metric in columns if dataset == BENCHMARKS],
        training=[(dataset, metric) for dataset, metric in columns if dataset in (TRAINING, VALIDATION)],
    )
