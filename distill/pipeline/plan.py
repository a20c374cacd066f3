"""A whole run: which artifacts a config needs, from the teacher to the values of a table's row."""

from __future__ import annotations

import importlib.metadata
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.base import hub
from distill.base.errors import UserError
from distill.data import sets
from distill.data.sets import Dataset
from distill.evaluation.bertscore import WHEEL, check, locate
from distill.pipeline.keys import NO_DECODING, VERSIONS, Given, identity, settings_of, spec
from distill.pipeline.store import Spec, digest
from distill.pipeline.training_plan import Role, TrainingPlan


class Plan(TrainingPlan):
    """The artifacts of one config. Reading `student` or `run_key` loads data, but no weights."""

    @cached_property
    def sets(self) -> dict[str, Dataset]:
        """Evaluation sets."""
        return sets.evaluation(self.config)

    @property
    def needs_hub(self) -> bool:
        """Whether weights or data come from the hub."""
        model, data = self.config.model, self.config.data
        paths = [w.path for w in (model.teacher, model.student) if w.path is not None]
        encoder = self.config.eval.bertscore.encoder
        paths += [encoder] if encoder not in (None, WHEEL) else []
        named = any(not Path(path).expanduser().is_dir() for path in paths)
        corpus = data.pretrain is not None and data.pretrain.file is None
        return model.source == "hub" or named or corpus or (data.root is None and data.generator is None)

    def check_data(self, texts: bool = True) -> None:
        """Load every set and look for the encoder, to name all that is missing or wrong before anything is made.

        Args:
            texts: whether responses will be scored, which takes the encoder.

        Raises:
            UserError: with the problems of all sets.
        """
        if self.needs_hub:
            hub.prepare()
        problems: list[str] = []
        for name in ("data", "sets", "pretraining"):
            try:
                getattr(self, name)
            except UserError as error:
                problems += error.problems
        if texts and self.config.eval.bertscore.encoder is not None:
            try:
                check(self.config.eval.bertscore)
            except UserError as error:
                problems += error.problems
        if problems:
            hint = [hub.WITHOUT] if hub.WITHOUT in problems else []
            raise UserError([*dict.fromkeys(p for p in problems if p not in hint), *hint])

    def model(self, role: Role) -> Spec | Given:
        """What is evaluated."""
        return self.teacher if role == "teacher" else self.student

    def decoding(self) -> dict[str, Any]:
        """The settings that a generated text depends on."""
        evaluation = settings_of(self.config.eval, exclude=NO_DECODING)
        train = settings_of(self.config.train, include={"max_prompt_length", "precision"})
        return {**evaluation, **train, "engine": self.config.eval.engine}

    def run_key(self, role: Role) -> str:
        """Hash of everything that a row's values depend on but the generation seed."""
        measured = {name: dataset.fingerprint for name, dataset in self.sets.items()}
        return digest([self.model(role).key, self.decoding(), self.template_hash(), measured, VERSIONS["evaluate"]])

    def evaluation(self, role: Role, dataset: Dataset, seed: int) -> Spec:
        """The generations and scores of one set and seed."""
        settings = {
            "model": self.model(role).key,
            "set": dataset.name,
            "data": dataset.fingerprint,
            "decoding": self.decoding(),
            "text": self.template_hash(),
            "seed": seed,
        }
        subject = self.model(role)
        label = subject.label if isinstance(subject, Spec) else f"{self.config.model.name}-{role}"
        return spec("evaluate", f"{label}-{dataset.name}-seed{seed}", settings)

    def agreement(self, dataset: Dataset) -> Spec:
        """How far the student agrees with the teacher on a set's references."""
        settings = {
            "student": self.student.key,
            "teacher": self.teacher.key,
            "set": dataset.name,
            "data": dataset.fingerprint,
            "text": self.template_hash(),
            "train": {**self.lengths(), "precision": self.config.train.precision},
        }
        return spec("agree", f"{self.student.label}-{dataset.name}", settings)

    def bertscore(self, evaluation: Spec) -> Spec:
        """BERTScore of an evaluation's responses by the config's encoder."""
        wanted = self.config.eval.bertscore
        settings = {
            "evaluation": evaluation.key,
            "encoder": self._encoder,
            "layers": wanted.layers,
        }
        return spec("bertscore", evaluation.label, settings)

    @cached_property
    def _encoder(self) -> str:
        return identity(locate(self.config.eval.bertscore), "main")

    def reading(self, dataset: Dataset, own: bool) -> Spec:
        """The teacher's hidden states over a set's references or over its own texts of the first seed, which all of its
        students are measured on."""
        texts = self.evaluation("teacher", dataset, self.config.seed[0]).key if own else dataset.fingerprint
        settings = {
            "teacher": self.teacher.key,
            "texts": texts,
            "text": self.template_hash(),
            "train": {**self.lengths(), "precision": self.config.train.precision},
        }
        what = "own" if own else "references"
        return spec("reading", f"{self.config.model.name}-teacher-{dataset.name}-{what}", settings)

    def exposure(self, dataset: Dataset) -> Spec:
        """The student's exposure bias, on its own and the teacher's responses of the first seed."""
        own, theirs = (self.evaluation(role, dataset, self.config.seed[0]) for role in ("student", "teacher"))
        settings = {"student": own.key, "teacher": theirs.key, "reader": self.agreement(dataset).key}
        return spec("exposure", f"{self.student.label}-{dataset.name}", settings)

    def benchmark(self, role: Role, task: str, shots: int) -> Spec:
        """A model's answers to one of lm-eval's tasks."""
        wanted = self.config.eval.benchmarks
        settings = {
            "model": self.model(role).key,
            "task": task,
            "shots": shots,
            "limit": wanted.limit,
            "tasks": identity(wanted.tasks, "main") if wanted.tasks else None,
            "lm_eval": importlib.metadata.version("lm-eval"),
            "precision": self.config.train.precision,
        }
        subject = self.model(role)
        label = subject.label if isinstance(subject, Spec) else f"{self.config.model.name}-{role}"
        return spec("benchmark", f"{label}-{task}", settings)

    def specs(self, role: Role) -> list[Spec]:
        """Every artifact behind a row, evaluations included."""
        chain: list[Spec | Given] = [self.base("teacher"), self.teacher]
        if role == "student":
            chain += [self.base("student"), self.start, self.student]
            chain += [self.signal] if self.stores_signal else []
            chain += [self.answers] if self.config.sampler.kind.asks_teacher else []
        evaluations = [self.evaluation(role, d, s) for d in self.sets.values() for s in self.config.seed]
        if self.config.eval.bertscore.encoder is not None:
            evaluations += [self.bertscore(evaluation) for evaluation in evaluations]
        if role == "student":
            evaluations += [one(d) for d in self.sets.values() for one in (self.agreement, self.exposure)]
            evaluations += [self.reading(d, own) for d in self.sets.values() for own in (False, True)]
        return [x for x in dict.fromkeys([*chain, *evaluations]) if isinstance(x, Spec)]
