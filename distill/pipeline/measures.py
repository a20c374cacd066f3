"""What is measured of finished rows beside their texts' own scores, each as an artifact of its own.

BERTScore reads the kept texts; agreement and exposure bias read student and teacher again, where both are at hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.base.console import bar, say
from distill.base.errors import UserError
from distill.config.data import SplitConfig
from distill.config.evaluation import EvalConfig
from distill.data.encode import Encoded, Encoder
from distill.data.examples import Example
from distill.data.sets import Dataset, choose
from distill.evaluation.agreement import ROWS, agreement
from distill.evaluation.benchmarks import Benchmark, Harness
from distill.evaluation.bertscore import BertScorer
from distill.evaluation.exposure import LENGTHS, excess_error
from distill.generation.stage import Scored, read_generations
from distill.models.load import Weights, load_model, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.pipeline.plan import Plan
from distill.pipeline.store import Spec
from distill.pipeline.training_plan import Role
from distill.teacher.signal import StoredTeacher
from distill.training.encoding import training_encoder
from distill.training.job import teacher_dtype

if TYPE_CHECKING:
    from distill.pipeline.stages import Stages

SCORES = "scores.json"  # an artifact's values by response, in the order of its evaluation's


def score_meaning(stages: Stages, role: Role, seeds: Sequence[int]) -> None:
    """BERTScore of a role's responses where it is asked for; missing ones from one load of the encoder."""
    plan = stages.plan
    if plan.config.eval.bertscore.encoder is None:
        return
    encoder = cache(lambda: BertScorer(plan.config.eval.bertscore))  # the first process alone loads it
    with bar(len(plan.sets), "  BERTScore", "set") as shown:
        for dataset in plan.sets.values():
            specs = [plan.evaluation(role, dataset, seed) for seed in seeds]
            missing = [spec for spec in specs if not plan.store.agreed(plan.bertscore(spec))]
            references = {e.id: e.references for e in dataset.examples}

            def build(
                folders: list[Path], missing: Any = missing, references: Any = references
            ) -> list[dict[str, Any]]:
                several = [read_generations(plan.store.folder(spec)) for spec in missing]
                beside = [row for rows in zip(*several, strict=True) for row in rows]  # a reference is embedded once
                scores = encoder().score([row.text for row in beside], [references[row.id] for row in beside])
                told = []
                for at, folder in enumerate(folders):
                    own = scores[at :: len(folders)]
                    (folder / SCORES).write_text(json.dumps([round(score, 4) for score in own]))
                    told.append({"bertscore": sum(own) / len(own), "rows": len(own)})
                return told

            if missing:
                plan.store.make_all([plan.bertscore(spec) for spec in missing], build, quiet=True)
            shown.update(1)


def run_benchmarks(stages: Stages, role: Role, benchmarks: Sequence[Benchmark]) -> None:
    """A role's model on lm-eval's tasks; missing ones from one load."""
    plan = stages.plan
    wanted = {(one.task, one.shots): plan.benchmark(role, one.task, one.shots) for one in benchmarks}
    missing = {at: spec for at, spec in wanted.items() if not plan.store.agreed(spec)}
    if not missing:
        return
    weights = stages.made(role)

    @cache  # the first process alone loads it
    def harness() -> Harness:
        return Harness(load_model(weights, teacher_dtype(plan.config)), load_tokenizer(weights), plan.config)

    for (task, shots), spec in missing.items():
        plan.store.make(spec, lambda _, task=task, shots=shots: harness().run(task, shots), quiet=True)  # type: ignore[misc]
        told = plan.store.manifest(spec)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in told["metrics"].items())
        say(f"{task}, {shots} shots, {told['rows']} questions: {shown}")


def compare_with_teacher(stages: Stages) -> None:
    """A trained student's agreement with its teacher and its exposure bias on each set, where both are at hand.

    A fine-tuned one is compared with a teacher that was trained here for other rows.
    """
    plan, sets = stages.plan, list(stages.plan.sets.values())
    apart = [d for d in sets if not plan.store.agreed(plan.agreement(d))]
    exposed = [d for d in sets if _texts(plan, d) and not plan.store.agreed(plan.exposure(d))]
    if not (apart or exposed) or not plan.store.agreed(plan.student):
        return
    theirs = stages.finished_teacher()
    if theirs is None:
        return
    both = _Both(stages, stages.student(), theirs)
    for dataset in apart:
        _agree(plan, dataset, both)
    for dataset in exposed:
        _expose(plan, dataset, both)


class _Both:
    """A student and its teacher, loaded when they are first asked for: the first process of several alone asks."""

    def __init__(self, stages: Stages, own: Weights, theirs: Weights):
        self.stages, self.own, self.theirs = stages, own, theirs
        self.tokenizer = load_tokenizer(own)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _load(self, weights: Weights) -> Any:
        return load_model(weights, teacher_dtype(self.stages.config)).to(self.device).eval()

    @cached_property
    def student(self) -> Any:
        """The student's model."""
        return self._load(self.own)

    @cached_property
    def teacher(self) -> Any:
        """The teacher's model."""
        return self._load(self.theirs)

    def reading(self, node: Spec, rows: Sequence[Encoded]) -> StoredTeacher:
        """The teacher's hidden states over rows that all of its students are measured on."""
        folder = self.stages.read_by_teacher(node, self.theirs, lambda: rows, lambda: self.teacher)
        return StoredTeacher(folder).to(self.device)


def _sample(dataset: Dataset) -> list[Example]:
    """The examples that both models read."""
    return choose(dataset.examples, SplitConfig(sample=ROWS))


def _agree(plan: Plan, dataset: Dataset, both: _Both) -> None:
    encoder = training_encoder(plan.config, both.tokenizer)
    try:
        rows = encoder.pairs(_sample(dataset), plan.config.train.max_length).rows
    except UserError as error:  # no row is short enough; what was written stands without it
        say(f"agreement with the teacher on {dataset.title}: not measured ({error})")
        return
    teacher, pad = both.reading(plan.reading(dataset, own=False), rows), pad_id(both.tokenizer)
    plan.store.make(plan.agreement(dataset), lambda _: agreement(both.student, teacher, rows, pad), quiet=True)
    told = plan.store.manifest(plan.agreement(dataset))
    kls = f"KL forward {told['fkl']:.3f}, reverse {told['rkl']:.3f} nats"
    say(f"agreement with the teacher on {dataset.title}: top-1 {told['top1']:.1f} %, {kls}")


def _expose(plan: Plan, dataset: Dataset, both: _Both) -> None:
    decode, eos, pad = plan.config.eval, both.tokenizer.eos_token_id, pad_id(both.tokenizer)
    limit = plan.config.train.max_prompt_length
    encoder = Encoder(both.tokenizer, plan.config.data.template, limit, decode.overlong_prompt)
    prompts = {row.id: row.prompt for row in encoder.prompts(_sample(dataset)).rows}
    by_student, by_teacher = (
        [
            Encoded(row.id, prompts[row.id], [*(row.token_ids or []), *([eos] if row.ended else [])])
            for row in rows
            if row.id in prompts
        ]
        for rows in _texts(plan, dataset)
    )
    lengths = [n for n in LENGTHS if n <= decode.max_new_tokens] or [decode.max_new_tokens]
    read = both.reading(plan.reading(dataset, own=True), by_teacher)

    def build(_: Path) -> dict[str, Any]:
        found = excess_error(both.student, both.teacher, by_student, by_teacher, lengths, pad, read)
        return {"exaccerr": {str(length): value for length, value in found.items()}, "rows": len(by_student)}

    plan.store.make(plan.exposure(dataset), build, quiet=True)
    told = plan.store.manifest(plan.exposure(dataset))["exaccerr"]
    shown = ", ".join(f"{value:.1f} % at {length} tokens" for length, value in told.items())
    say(f"exposure bias on {dataset.title} (ExAccErr): {shown or 'none, as the two models are the same'}")


def _texts(plan: Plan, dataset: Dataset) -> list[list[Scored]]:
    """Student's and teacher's responses of the first seed; none where they are not kept, or not plain samples."""
    specs = [plan.evaluation(role, dataset, plan.config.seed[0]) for role in ("student", "teacher")]
    if not _plain(plan.config.eval) or not all(plan.store.agreed(spec) for spec in specs):
        return []
    both = [read_generations(plan.store.folder(spec)) for spec in specs]
    return both if all(row.token_ids is not None for rows in both for row in rows) else []


def _plain(decode: EvalConfig) -> bool:
    """Whether texts are drawn from the model's own distribution, over which exposure bias is a mean."""
    whole = decode.top_p == 1.0 and decode.top_k == 0 and decode.no_repeat_ngram_size == 0
    return decode.do_sample and decode.temperature == 1.0 and whole
